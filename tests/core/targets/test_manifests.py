"""The manifests: held to Kubernetes' own schemas, read back as what they should say, and applied in order."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from compiling import BASH, DATA_FILE, RECORD, SPEC_FILE, Compiler, calls

VERSIONS = ("1.29", "1.37")
"""The newest release with a schema here, and the oldest whose schema lets a failure policy have exit codes alone."""
ALL_SET = {
    "namespace": "team-a", "storage_class": "fast-ssd", "storage": "2Ti", "access": "ReadWriteMany", "memory": "64Gi",
    "small_memory": "8Gi", "gpu": "amd.com/gpu", "user": "4242", "retries": "0", "hub_secret": "hub-token",
}  # fmt: skip
Program = Callable[..., dict[str, Any]]


def manifests(folder: Path) -> dict[str, dict[str, Any]]:
    """Return every object by its kind and the end of its name."""
    found = [item for path in sorted(folder.glob("*.yaml")) + sorted(folder.glob("jobs/*.yaml"))
             for item in yaml.safe_load_all(path.read_text())]  # fmt: skip
    return {f"{item['kind']} {item['metadata']['name'].split('-', 2)[-1]}": item for item in found}


def pod(job: dict[str, Any]) -> dict[str, Any]:
    """Return a Job's pod."""
    return job["spec"]["template"]["spec"]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("settings", [{}, ALL_SET], ids=["defaults", "all set"])
def test_every_manifest_fits_kubernetes_schema(hostile: Compiler, version: str, settings: dict[str, str]) -> None:
    given = [word for pair in settings.items() for word in ("--set", "=".join(pair))]
    found = manifests(hostile("kubernetes", "--class", "cuda", *given))
    assert len(found) == 9
    for item in found.values():
        kubernetes_validate.validate(item, version, strict=True)
        assert item["metadata"].get("namespace") == settings.get("namespace")


def test_a_manifest_with_a_wrong_field_fits_no_schema(plain: Compiler) -> None:
    job = manifests(plain("kubernetes"))["Job draft"]
    pod(job)["containers"][0]["comand"] = ["specc"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, VERSIONS[0], strict=True)


def test_names_of_the_spec_come_back_as_they_are(hostile: Compiler) -> None:
    folder = hostile("kubernetes")
    found = manifests(folder)
    (config,) = (item for item in found.values() if item["kind"] == "ConfigMap")
    assert config["immutable"]
    assert config["data"]["spec"] == (hostile.project.folder / SPEC_FILE).read_text()
    assert config["data"]["lock"] == (folder / "project" / SPEC_FILE.replace(".yaml", ".lock.json")).read_text()
    assert config["data"]["files"] == (folder / "files.sha256").read_text()
    assert DATA_FILE.replace("\\", "\\\\").replace("\n", "\\n") in config["data"]["files"]
    for name, job in found.items():
        if not name.startswith("Job "):
            continue
        stage = name.removeprefix("Job ").replace("-", "_")
        (container,) = pod(job)["containers"]
        assert container["command"] == ["specc"]
        assert container["args"] == ["build", "--frozen", "--offline", "--stage", stage, f"./{SPEC_FILE}"]
        mounts = {item["subPath"]: item["mountPath"] for item in container["volumeMounts"] if "subPath" in item}
        assert mounts["spec"] == f"{container['workingDir']}/{SPEC_FILE}"
        assert mounts["lock"] == mounts["spec"].replace(".yaml", ".lock.json")
        volumes = {item["name"]: item for item in pod(job)["volumes"]}
        assert volumes["project"]["configMap"]["name"] == config["metadata"]["name"]
        assert {item["name"] for item in container["volumeMounts"]} == set(volumes)


def test_a_long_spec_is_a_block_that_a_person_can_read(plain: Compiler) -> None:
    text = (plain("kubernetes") / "project.yaml").read_text()
    assert "\n  spec: |2\n    version: 1\n    name: tiny\n" in text


def test_nothing_runs_with_more_rights_than_it_needs(plain: Compiler) -> None:
    for name, job in manifests(plain("kubernetes", "--set", "user=4242")).items():
        if not name.startswith("Job "):
            continue
        assert pod(job)["automountServiceAccountToken"] is False
        secure = pod(job)["securityContext"]
        assert secure["runAsNonRoot"] is True
        assert secure["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {secure[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {4242}
        for container in [*pod(job)["containers"], *pod(job).get("initContainers", [])]:
            assert container["image"] == "registry.example:5000/specc:0.1.0"
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
            }  # fmt: skip


def test_stages_that_run_a_model_have_other_resources_than_the_rest(plain: Compiler) -> None:
    spec = plain.project.folder / "tiny.yaml"
    spec.write_text(spec.read_text() + "runtime: {threads: 3, train: {ranks: 2}}\n")
    plain.project.run("lock", "tiny.yaml")
    sites = ("--set", "memory=64Gi", "--set", "small_memory=8Gi", "--set", "gpu=amd.com/gpu")
    found = manifests(plain("kubernetes", "--class", "cuda", *sites))
    resources = {name.removeprefix("Job "): pod(job)["containers"][0]["resources"] for name, job in found.items()
                 if name.startswith("Job ")}  # fmt: skip
    assert resources["draft"] == {"requests": {"cpu": "6", "memory": "64Gi"},
                                  "limits": {"memory": "64Gi", "amd.com/gpu": 2}}  # fmt: skip
    assert resources["hidden-states"]["limits"]["amd.com/gpu"] == 1
    assert resources["tokens"] == {"requests": {"cpu": "1", "memory": "8Gi"}, "limits": {"memory": "8Gi"}}


def test_the_files_are_checked_by_the_first_jobs_alone_and_a_token_comes_from_a_secret_where_a_hub_is_asked(
    plain: Compiler,
) -> None:
    found = manifests(plain("kubernetes", "--set", "hub_secret=hub-token"))
    checking = [name for name, job in found.items() if name.startswith("Job ") and "initContainers" in pod(job)]
    assert checking == ["Job verifier", "Job conversations"]
    assert "hub-token" not in str(found), "the verifier of this spec is no hub's"


def test_what_a_cluster_would_refuse_is_refused_here(plain: Compiler) -> None:
    needed = ("--target", "kubernetes", "--set", "image=specc:0.1.0")
    spec = plain.project.folder / "tiny.yaml"
    text = spec.read_text()
    spec.write_text(f"{text}# {'long ' * 200_000}\n")
    assert "bytes, and a ConfigMap holds 1,000,000\n" in plain.fails(*needed)
    spec.rename(spec.with_name("a:b.yaml"))
    spec.with_name("tiny.lock.json").rename(spec.with_name("a:b.lock.json"))
    said = Compiler(plain.project, "a:b.yaml").fails(*needed)
    assert "a volume cannot be mounted at a path with a colon: `a:b.yaml`" in said
    assert "a ConfigMap holds" in said


# The script

KUBECTL = (
    RECORD
    + """\
state="$CALLS.state"
case " $* " in
  *" get job "*) cat "$state" 2>/dev/null || true ;;
  *" delete "*) rm "$state" ;;
  *" apply "*) echo "$OUTCOME" > "$state" ;;
esac
"""
)


def run(folder: Path, environment: dict[str, Any], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script from another folder."""
    return subprocess.run([BASH, folder / "run.sh", *arguments], cwd="/", capture_output=True, text=True, check=False,
                          env={**environment, "SPECC_POLL": "0.01"})  # fmt: skip


def test_stages_are_applied_in_order_each_after_the_one_before(plain: Compiler, program: Program) -> None:
    folder = plain("kubernetes", "--set", "namespace=team-a")
    environment = program(kubectl=KUBECTL)
    done = run(folder, {**environment, "OUTCOME": "SuccessCriteriaMet Complete"}, "--context", "my cluster")
    assert done.returncode == 0, done.stderr
    found = calls(environment)
    assert all(call[:5] == ["kubectl", "--namespace", "team-a", "--context", "my cluster"] for call in found)
    applied = [call[-1] for call in found if "apply" in call]
    assert applied == ["project.yaml", *sorted(f"jobs/{path.name}" for path in folder.glob("jobs/*"))]
    assert not any("delete" in call for call in found)


def test_a_stage_that_failed_ends_the_script_and_is_started_anew_the_next_time(
    plain: Compiler, program: Program
) -> None:
    folder = plain("kubernetes")
    environment = program(kubectl=KUBECTL)
    done = run(folder, {**environment, "OUTCOME": "FailureTarget Failed"})
    assert done.returncode == 1
    assert "error: the stage failed: `kubectl describe job specc-" in done.stderr
    assert [call[-1] for call in calls(environment) if "apply" in call] == ["project.yaml", "jobs/01-verifier.yaml"]
    assert any("logs" in call for call in calls(environment))
    Path(environment["CALLS"]).unlink()
    Path(environment["CALLS"] + ".state").write_text("Failed\n")
    run(folder, {**environment, "OUTCOME": "Failed"})
    names = [call[1] for call in calls(environment)]
    assert names[:5] == ["apply", "get", "delete", "apply", "get"]
