"""`specc check --format`: one report in four forms.

`tests/data/sarif-schema-2.1.0.json` is the JSON schema of SARIF 2.1.0, as `lib/schemas/sarif-2.1.0-rtm.5.json` of the
npm package `@microsoft/jest-sarif` 1.0.0-beta.0 (MIT) carries it.
"""

from __future__ import annotations

import json
import os
import re
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from jsonschema import Draft4Validator

from specc.core.cli import main
from specc.core.cli.reports import FORMATS, UNNUMBERED, Finding, Good, Report
from specc.core.errors import Exit, Position, SpeccError
from specc.core.language.explanations import EXPLANATIONS

SPECS = Path("tests/specs")
BAD = sorted((Path(__file__).parents[3] / SPECS / "bad").glob("*.yaml"))
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def checkout(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)


@pytest.fixture(scope="module")
def validator(root: Path) -> Draft4Validator:
    schema = json.loads((root / "tests/data/sarif-schema-2.1.0.json").read_text())
    Draft4Validator.check_schema(schema)
    return Draft4Validator(schema)


def check(capsys: Capture, form: str, *paths: Path | str, expect: int = 1) -> str:
    """Check specs; return what is printed, on the stream that the format has."""
    assert main(["check", "--format", form, *map(str, paths)]) == expect
    out, err = capsys.readouterr()
    if form == "text":
        assert out == ""
        return err
    assert "error" not in err
    return out


def results(log: str) -> list[dict[str, Any]]:
    """Return the results of a SARIF log."""
    (run,) = json.loads(log)["runs"]
    return run["results"]


def place(result: dict[str, Any]) -> dict[str, Any]:
    """Return where a SARIF result is."""
    (location,) = result["locations"]
    return location["physicalLocation"]


def test_every_format_has_every_error_of_the_corpus_and_the_same_exit_code(
    capsys: Capture, validator: Draft4Validator
) -> None:
    paths = [*BAD, SPECS / "good/minimal.yaml", SPECS / "none.yaml"]
    errors = json.loads(check(capsys, "json", *paths))["errors"]
    assert len(errors) > len(BAD)
    assert len(re.findall("^error: ", check(capsys, "text", *paths), flags=re.MULTILINE)) == len(errors)
    commands = check(capsys, "github", *paths).splitlines()
    log = check(capsys, "sarif", *paths)
    validator.validate(json.loads(log))
    assert len(errors) == len(commands) == len(results(log))
    for error, command, result in zip(errors, commands, results(log), strict=True):
        assert result["ruleId"] == error["id"]
        assert result["message"]["text"].splitlines()[0] == error["message"]
        where = error["where"]
        region = place(result).get("region")
        if isinstance(where, str):
            assert region is None
            assert re.match(rf"::error file=[^:,]+,title={error['id']}::", command)
        else:
            end = where["column"] + where["length"]
            assert region == {"startLine": where["line"], "startColumn": where["column"], "endColumn": end}
            numbers = f"line={where['line']},col={where['column']},endColumn={end}"
            assert re.match(rf"::error file=[^:,]+,{numbers},title={error['id']}::", command)


def test_an_annotation_is_the_whole_error_in_one_line(capsys: Capture) -> None:
    assert check(capsys, "github", SPECS / "bad/unknown-field.yaml") == (
        "::error file=tests/specs/bad/unknown-field.yaml,line=9,col=3,endColumn=15,title=E0101::"
        "unknown field `learing_rate` in `train`%0Adid you mean `train.optimizer.learning_rate`?\n"
    )
    assert check(capsys, "github", "none.yaml") == (
        "::error file=none.yaml,title=E0001::"
        "there is no such file%0Ahint: `specc init none.yaml` writes a spec to start from\n"
    )


def test_a_workflow_command_is_escaped_as_github_reads_it() -> None:
    error = SpeccError("50% of `a,b`: no\r\nmore", where=Position("a:b,c%.yaml", 1, 2), id="E0101")
    assert FORMATS["github"].render(Report((), (Finding(Path("a"), error),))) == (
        "::error file=a%3Ab%2Cc%25.yaml,line=1,col=2,endColumn=3,title=E0101::50%25 of `a,b`: no%0D%0Amore\n"
    )


@pytest.mark.parametrize("where", [None, "elsewhere.json"])
def test_an_error_without_an_id_or_a_place_is_that_of_its_spec(where: str | None, validator: Draft4Validator) -> None:
    error = SpeccError("the schema is not where specc was installed", where=where, hint="install it again")
    report = Report((), (Finding(Path("specs/a.yaml"), error),))
    file = where or "specs/a.yaml"
    assert FORMATS["github"].render(report) == (
        f"::error file={file}::the schema is not where specc was installed%0Ahint: install it again\n"
    )
    log = FORMATS["sarif"].render(report)
    validator.validate(json.loads(log))
    (result,) = results(log)
    assert result["ruleId"] == UNNUMBERED
    assert place(result) == {"artifactLocation": {"uri": file, "uriBaseId": "%SRCROOT%"}}
    assert "id" not in json.loads(FORMATS["json"].render(report))["errors"][0]


def test_the_rules_of_a_log_are_the_explanations(capsys: Capture, validator: Draft4Validator) -> None:
    log = json.loads(check(capsys, "sarif", SPECS / "bad/unknown-field.yaml"))
    validator.validate(log)
    driver = log["runs"][0]["tool"]["driver"]
    assert (driver["name"], driver["version"]) == ("specc", metadata.version("specc"))
    rules = {rule["id"]: rule["shortDescription"]["text"] for rule in driver["rules"]}
    assert rules.pop(UNNUMBERED)
    assert rules == EXPLANATIONS
    for result in log["runs"][0]["results"]:
        assert driver["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] == "error"


@pytest.mark.parametrize(
    "name", ["plain.yaml", "a b.yaml", "50%.yaml", "a:b,c.yaml", "träumerei.yaml", "a\udcffb.yaml"]
)
def test_uris_are_relative_and_lead_to_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, name: str
) -> None:
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "deep" / name
    file.write_text("version: 2\n")
    for path in (file, Path("deep") / name):
        log = check(capsys, "sarif", path)
        log.encode()  # is text
        for result in results(log):
            uri = place(result)["artifactLocation"]["uri"]
            assert uri.isascii()
            assert not urlsplit(uri).scheme
            assert not uri.startswith("/")
            assert Path(os.fsdecode(unquote_to_bytes(uri))).samefile(file)
    check(capsys, "json", file).encode()
    check(capsys, "github", file).encode()


def test_a_spec_that_is_good_has_an_empty_report(capsys: Capture, validator: Draft4Validator) -> None:
    good = SPECS / "good/minimal.yaml"
    assert check(capsys, "github", good, expect=0) == ""
    log = check(capsys, "sarif", good, expect=0)
    validator.validate(json.loads(log))
    assert results(log) == []
    assert json.loads(check(capsys, "json", good, expect=0)) == {
        "specs": [{"file": str(good), "name": "my-speculator"}]
    }
    assert check(capsys, "text", good, expect=0) == f"ok: {good}\n"


def test_json_is_a_format_of_its_own_name(capsys: Capture) -> None:
    for path in (SPECS / "good/minimal.yaml", SPECS / "bad/unknown-field.yaml"):
        code = main(["check", "--json", str(path)])
        said = capsys.readouterr()
        assert main(["check", "--format", "json", str(path)]) == code
        assert capsys.readouterr() == said
    assert main(["check", "--json", "--format", "sarif", str(path)]) == 2
    assert "leave one of them out" in capsys.readouterr().out
    assert main(["check", "--format", "xml", str(path)]) == 2


def test_the_worst_exit_code_is_the_report_s() -> None:
    def finding(code: Exit) -> Finding:
        return Finding(Path("a.yaml"), SpeccError("no", code=code))

    assert Report((Good("a.yaml", "a"),), ()).code == Exit.OK
    assert Report((), (finding(Exit.STAGE), finding(Exit.INPUT))).code == Exit.STAGE
