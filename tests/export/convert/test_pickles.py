"""Pickles of others: tensors are read and nothing is run; what is too large or something else is not even opened."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from export.convert import sources  # noqa: E402
from export.convert.test_properties import CONFIG  # noqa: E402
from specc.core.errors import SpeccError  # noqa: E402

pytestmark = pytest.mark.engine


class Runs:
    """What a pickle may hold: a call of whatever it likes."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def refused(folder: Path, where: Path) -> SpeccError:
    """Convert a folder that cannot be; return the error. Nothing is written."""
    with pytest.raises(SpeccError) as caught:
        sources.convert(folder / "stage", where, folder, CONFIG)
    assert not any((folder / "stage/output").iterdir())
    return caught.value


def test_a_pickle_that_would_run_something_does_not(tmp_path: Path) -> None:
    where, mark = sources.safeailab().into(tmp_path / "source", form="bin"), tmp_path / "ran"
    torch.save({**sources.safeailab().tensors, "surprise": Runs(mark)}, where / "pytorch_model.bin")
    error = refused(tmp_path, where)
    assert error.message.startswith("the pickle holds more than tensors, and none of it was run")
    assert "system" in error.message
    assert error.where == "pytorch_model.bin"
    assert not mark.exists()
    (where / "pytorch_model.bin").write_bytes(pickle.dumps(Runs(mark)))  # in the form from before 1.6
    assert "not in the form that `torch.save` writes since PyTorch 1.6" in refused(tmp_path, where).message
    assert not mark.exists()


def test_a_pickle_larger_than_its_configuration_allows_is_not_opened(tmp_path: Path) -> None:
    where = sources.safeailab().into(tmp_path / "source", form="bin")
    with (where / "pytorch_model.bin").open("r+b") as file:
        file.truncate(1 << 30)  # a hole: no archive is in it, and nobody looks
    error = refused(tmp_path, where)
    assert "have 1,073,741,824 bytes, and weights of such a draft have" in error.message


def test_an_archive_that_unpacks_to_more_is_not_opened(tmp_path: Path) -> None:
    where = sources.safeailab().into(tmp_path / "source", form="bin")
    path = where / "pytorch_model.bin"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data + bytes(1 << 20))
    assert "an archive that unpacks to more than it is" in refused(tmp_path, where).message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2, 3], "not a table of tensors"),
        ({"model": {"fc.weight": torch.zeros(2)}}, "entry `model` is no plain tensor"),
        ({"fc.weight": torch.zeros(2, 2).to_sparse()}, "entry `fc.weight` is no plain tensor"),
        (OrderedDict({"fc.weight": torch.zeros(2, dtype=torch.complex64)}), "is of dtype torch.complex64"),
        ({"fc.weight": torch.zeros(1).expand(64, 1 << 40)}, "`fc.weight` is [64, 1099511627776], not [64, 192]"),
    ],
)
def test_a_pickle_of_something_else_is_refused(content: Any, said: str, tmp_path: Path) -> None:
    where = sources.safeailab().into(tmp_path / "source", form="bin")
    if (
        isinstance(content, dict)
        and content.get("fc.weight") is not None
        and content["fc.weight"].dim() == 2
        and not (content["fc.weight"].is_sparse)
    ):
        content = {**sources.safeailab().tensors, **content}
    torch.save(content, where / "pytorch_model.bin")
    assert said in refused(tmp_path, where).message


def test_a_file_that_was_changed_after_it_was_pinned_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = sources.safeailab().into(tmp_path / "source", form="bin")
    from specc.core.resolve import source

    real = source.find

    def changed(*arguments: Any) -> source.Source:
        found = real(*arguments)
        torch.save({}, where / "pytorch_model.bin")
        return found

    monkeypatch.setattr(source, "find", changed)
    assert refused(tmp_path, where).message == ("the source's file `pytorch_model.bin` is not the one that was pinned")


def test_files_that_may_hold_more_weights_are_named(tmp_path: Path) -> None:
    where = sources.dflash().into(tmp_path / "source")
    (where / "training_args.bin").write_bytes(b"a trainer's")
    (where / "mask_embedding.pt").write_bytes(b"an embedding of its own, which vLLM reads")
    with pytest.raises(SpeccError, match=r"`mask_embedding\.pt` may hold weights, and no layout has it"):
        sources.convert(tmp_path / "stage", where, tmp_path, CONFIG)
