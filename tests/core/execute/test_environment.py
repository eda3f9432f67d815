"""The environment of a stage is a function of its facets, and of nothing that a caller has set."""

from __future__ import annotations

import os
import site
from pathlib import Path

import pytest

from specc.core.execute.environment import environment, free_port
from specc.core.loggers import TO_REACH_A_SERVER


def test_the_whole_environment_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    monkeypatch.setenv("PATH", "/usr/bin")
    found = environment({"device": "cpu", "isa": "amx", "threads": 4}, Path("/w"), 1234)
    assert found.pop("SPECC_PARENT") == str(os.getpid())
    assert found == {
        "ATEN_CPU_CAPABILITY": "avx512",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "DO_NOT_TRACK": "1",
        "DS_ACCELERATOR": "cpu",
        "GOMP_SPINCOUNT": "30000",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",
        "HOME": "/w/home",
        "LC_ALL": "C.UTF-8",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "1234",
        "MKL_CBWR": "AVX512",
        "MKL_DYNAMIC": "FALSE",
        "MKL_NUM_THREADS": "4",
        "OMP_DYNAMIC": "FALSE",
        "OMP_NUM_THREADS": "4",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX",
        "PATH": "/usr/bin",
        "PYTHONHASHSEED": "0",
        "PYTHONUNBUFFERED": "1",
        "RANK": "0",
        "TMPDIR": "/w/tmp",
        "TOKENIZERS_PARALLELISM": "false",
        "TZ": "UTC",
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "WORLD_SIZE": "1",
    }


def test_processes_of_a_verifier_speak_through_a_folder_of_a_short_name(tmp_path: Path) -> None:
    alone = environment({"threads": 1}, tmp_path, 1)
    several = environment({"threads": 1, "tensor_parallel": 2}, tmp_path, 1, sockets="/tmp/specc-a")  # noqa: S108
    assert several == alone | {"VLLM_RPC_BASE_PATH": "/tmp/specc-a"}  # noqa: S108


def test_what_a_logger_needs_reaches_a_training_that_names_it_and_no_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = environment({"threads": 2}, tmp_path, 1)
    for name in TO_REACH_A_SERVER:
        monkeypatch.delenv(name, raising=False)
    given = {"WANDB_MODE": "online", "WANDB_API_KEY": "k", "MLFLOW_TRACKING_URI": "u", "HTTPS_PROXY": "p",
             "HF_TOKEN": "t"}  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert environment({"threads": 2}, tmp_path, 1) == before
    assert environment({"threads": 2}, tmp_path, 1, loggers=["tensorboard"]) == before
    told = environment({"threads": 2}, tmp_path, 1, loggers=["tensorboard", "wandb"])
    assert told == before | {"WANDB_MODE": "online", "WANDB_API_KEY": "k", "HTTPS_PROXY": "p"}


def test_a_callers_variables_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = environment({"threads": 2}, tmp_path, 1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "LD_PRELOAD", "LD_LIBRARY_PATH", "TZ", "LC_ALL", "LANG", "HOME",
                 "VLLM_USE_V1", "PYTHONHASHSEED", "PYTHONSTARTUP", "HF_HUB_OFFLINE", "HF_TOKEN", "HTTPS_PROXY", "RANK",
                 "CUDA_VISIBLE_DEVICES", "ATEN_CPU_CAPABILITY"):  # fmt: skip
        monkeypatch.setenv(name, "the caller's")
    assert environment({"threads": 2}, tmp_path, 1) == before


def test_a_stage_without_facets_has_one_thread_and_no_instruction_set(tmp_path: Path) -> None:
    found = environment({}, tmp_path, 1)
    assert found["OMP_NUM_THREADS"] == found["MKL_NUM_THREADS"] == "1"
    assert not {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"} & set(found)


@pytest.mark.parametrize(
    ("isa", "expected"),
    [
        ("amx", ("avx512", "AVX512_CORE_AMX", "AVX512")),
        ("avx512_bf16", ("avx512", "AVX512_CORE_BF16", "AVX512")),
        ("avx512", ("avx512", "AVX512_CORE", "AVX512")),
        ("avx2", ("avx2", "AVX2", "AVX2")),
    ],
)
def test_an_instruction_set_is_set_for_torch_onednn_and_mkl(
    tmp_path: Path, isa: str, expected: tuple[str, ...]
) -> None:
    found = environment({"device": "cpu", "isa": isa}, tmp_path, 1)
    assert (found["ATEN_CPU_CAPABILITY"], found["ONEDNN_MAX_CPU_ISA"], found["MKL_CBWR"]) == expected


def test_only_a_stage_that_fetches_reaches_a_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    found = environment({}, tmp_path, 1, hub=True)
    assert (found["HF_TOKEN"], found["HTTPS_PROXY"], found["HF_HUB_OFFLINE"]) == ("secret", "http://proxy", "0")


def test_only_a_stage_that_asks_an_endpoint_has_its_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "secret")
    found = environment({}, tmp_path, 1, endpoint=True)
    assert "HF_TOKEN" not in found
    assert (found["OPENAI_API_KEY"], found["HTTPS_PROXY"], found["HF_HUB_OFFLINE"]) == ("secret", "secret", "1")
    assert "secret" not in environment({}, tmp_path, 1).values()


def test_a_stage_on_a_gpu_sees_the_gpus_that_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    found = environment({"device": "cuda", "isa": "cuda"}, tmp_path, 1, gpus="3")
    assert (found["CUDA_VISIBLE_DEVICES"], found["DS_ACCELERATOR"]) == ("3", "cuda")
    assert "CUDA_VISIBLE_DEVICES" not in environment({"device": "cpu"}, tmp_path, 1)


def test_pythonpath_is_kept_where_specc_is_and_nowhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "with/specc").mkdir(parents=True)
    (tmp_path / "without").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), "", str(tmp_path / "with")]))
    assert environment({}, tmp_path, 1)["PYTHONPATH"] == str(tmp_path / "with")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    assert "PYTHONPATH" not in environment({}, tmp_path, 1)


def test_a_port_is_free() -> None:
    assert 1024 <= free_port() < 65536
