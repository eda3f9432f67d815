"""Settings of a site: what is unknown, wrong, missing or given twice is said at once, before anything is written."""

from __future__ import annotations

import json

import pytest

from compiling import NEEDED, Compiler
from specc.core.targets import TARGETS, read_settings
from specc.core.targets.base import Setting

ROWS = {(name, row.name): row for name, target in TARGETS.items() for row in target.settings}
GOOD = {
    "setup": ["env.sh", "/opt/venv/bin/activate", "it's $(here)"],
    "partition": ["gpu", "gpu-a100,gpu_h100"],
    "time": ["30", "24:00:00", "2-00:00:00"],
    "memory": ["64"],
    "image": [
        f"specc@sha256:{'0' * 64}",
        "specc:0.1.0",
        "localhost:5000/a/b-c__d/e:v1.2_x",
        f"a/b:1@sha256:{'f' * 64}",
    ],
    "access": ["ReadWriteOnce", "ReadWriteMany"],
    "store": ["/mnt/store", "/mnt/a b'$(x)"],
}
BAD = {
    "setup": ["", "two\nlines"],
    "partition": ["", "gpu\n#SBATCH --uid=0", "a b", ",gpu", "--wrap=x"],
    "time": ["soon", "1:2", "-1"],
    "memory": ["0", "64 G", "lots"],
    "image": ["specc", "specc:latest", "localhost:5000/specc", f"specc:latest@sha256:{'0' * 64}", "Specc:1", "a b:1",
              "specc@sha256:1", "specc:0.1.0\n"],
    "access": ["ReadOnlyMany"],
    "namespace": ["Team", "-a", "a\nb"],
    "user": ["0", "root"],
    "gpu": ["gpu 2", ""],
    "store": ["store", "~/store", ""],
}  # fmt: skip


@pytest.mark.parametrize(("target", "name"), ROWS)
def test_a_setting_takes_what_is_good_and_nothing_else(target: str, name: str) -> None:
    row: Setting = ROWS[target, name]
    assert row.default is None or row.takes(row.default)
    assert not (row.required and row.default)
    assert all(row.takes(value) for value in GOOD.get(name, []))
    assert not any(row.takes(value) for value in BAD.get(name, []))
    if name not in ("setup", "store"):  # whose values are quoted wherever they stand
        assert not any(row.takes(value) for value in ("$(id)", "a'b", 'a"b', "a b", "a\n", "a#b", "{{ x }}", "\x00"))


def test_everything_wrong_is_said_at_once_with_what_was_meant(plain: Compiler) -> None:
    said = plain.fails(
        "--target", "kubernetes", "--set", "storage_clas=fast", "--set", "user=root", "--set", "namespace",
        "--set", "retries=1", "--set", "retries=2", "--set", "frobnicate=1\x1b[31m", expect=2,
    )  # fmt: skip
    assert said == (
        "error: the target `kubernetes` has no setting `storage_clas`\n\n"
        "hint: did you mean `storage_class`?\n"
        "error: `user` cannot be `root`\n\n"
        "hint: expected a number above 0\n"
        "error: `--set namespace` has no value\n\n"
        "hint: write `--set namespace=VALUE`\n"
        "error: `retries` is set twice\n\n"
        "hint: set it once\n"
        "error: the target `kubernetes` has no setting `frobnicate`\n\n"
        "hint: known here: `image`, `namespace`, `storage_class`, `storage`, `access`, `memory`, `small_memory`, "
        "`gpu`, `user`, `retries` and `hub_secret`\n"
        "error: the target `kubernetes` needs `image`: container image with specc and its engines\n\n"
        "hint: `--set image=VALUE` sets it: an image with a digest, or a tag other than `latest`\n"
    )


def test_what_is_not_given_is_the_default_or_nothing() -> None:
    found = read_settings(TARGETS["kubernetes"], ["image=specc:1"])
    assert found["image"] == "specc:1"
    assert found["storage"] == "100Gi"
    assert found["namespace"] is None
    assert found.keys() == {row.name for row in TARGETS["kubernetes"].settings}


def test_the_help_lists_targets_and_settings(plain: Compiler) -> None:
    out, _ = plain.project.run("compile", "--help")
    for target in TARGETS.values():
        assert f"\n{target.name}: " in out
        assert all(f"  {row.name} " in out for row in target.settings)
    assert "[default: 100Gi]" in out.replace("\n" + " " * 17, " ")


def test_json_lists_what_was_written_and_from_what(plain: Compiler) -> None:
    out, err = plain.project.run("compile", "--json", "--target", "kubernetes", "--out", "out", "--set",
                                 *NEEDED["kubernetes"], "tiny.yaml")  # fmt: skip
    assert err == ""
    said = json.loads(out)
    manifest = json.loads((plain.project.folder / "out/compiled.json").read_text())
    assert said["target"] == manifest["target"] == "kubernetes"
    assert said["settings"] == manifest["settings"]
    written = {item["path"]: item["sha256"] for item in said["files"]}
    del written["compiled.json"]
    assert written == manifest["files"]
    wrong = plain.project.run("compile", "--json", "--target", "ray", "--out", "x", "tiny.yaml", expect=2)[0]
    assert [item["message"] for item in json.loads(wrong)["errors"]] == [
        "the target `ray` needs `store`: folder of the store, the same on every node"
    ]
