"""What a machine is, from /proc/cpuinfo alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from specc.core.errors import Exit, SpeccError
from specc.core.execute import machine
from specc.core.lock.engines import CLASSES

HASWELL = "fpu sse4_2 fma avx avx2 bmi2"
SKYLAKE = HASWELL + " avx512f avx512dq avx512cd avx512bw avx512vl"
COOPER_LAKE = SKYLAKE + " avx512_vnni avx512_bf16"
SAPPHIRE_RAPIDS = COOPER_LAKE + " amx_bf16 amx_tile amx_int8 avx512_fp16"


@pytest.mark.parametrize(
    ("flags", "isa"),
    [
        (SAPPHIRE_RAPIDS, "amx"),
        (COOPER_LAKE, "avx512_bf16"),
        (SKYLAKE, "avx512"),
        (HASWELL, "avx2"),
        ("fpu sse4_2", "x86"),
        (SAPPHIRE_RAPIDS.replace("amx_tile", ""), "avx512_bf16"),
        (HASWELL + " amx_bf16 amx_tile", "avx2"),
    ],
)
def test_the_instruction_set_is_the_richest_that_is_whole(tmp_path: Path, flags: str, isa: str) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(
        f"processor\t: 0\nvmx flags\t: ept\nflags\t\t: {flags}\nbugs\t: spectre\n\nprocessor\t: 1\nflags\t: x\n"
    )
    assert machine.isa_of(machine.cpu_flags(path)) == isa


def test_a_machine_without_cpuinfo_plans_for_the_plainest_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.isa_of(machine.cpu_flags(tmp_path / "nothing")) == "x86"
    monkeypatch.setattr(machine, "detect_class", lambda: ("cpu", "x86"))
    assert machine.machine_name() == "cpu-avx2"
    with pytest.raises(SpeccError, match="planned for the class `cpu` with `avx2`, and this machine") as caught:
        machine.require_isa({"device": "cpu", "isa": "avx2"})
    assert caught.value.code == Exit.STAGE


def test_this_machine_has_a_row() -> None:
    assert machine.machine_name() in CLASSES


@pytest.mark.parametrize(("wanted", "able"), [("amx", False), ("avx512_bf16", True), ("avx2", True), ("cuda", False)])
def test_a_richer_machine_can_do_what_a_poorer_one_can(
    monkeypatch: pytest.MonkeyPatch, wanted: str, able: bool
) -> None:
    monkeypatch.setattr(machine, "detect_class", lambda: ("cpu", "avx512_bf16"))
    if able:
        machine.require_isa({"device": "cpu", "isa": wanted})
    else:
        with pytest.raises(SpeccError, match="and this machine is `cpu` with `avx512_bf16`"):
            machine.require_isa({"isa": wanted})
    machine.require_isa({"threads": 1})


def test_installed_versions_come_from_metadata() -> None:
    found = machine.installed(["rfc8785", "no-such-distribution"])
    assert found["no-such-distribution"] is None
    assert found["rfc8785"] is not None
