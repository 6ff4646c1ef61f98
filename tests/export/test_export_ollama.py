"""`frbio export --format ollama`: a Modelfile that Ollama reads as it is meant, and refusals that say what to do."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from frbio_lite.cli import main
from frbio_lite.errors import RequestError
from frbio_lite.export import chat
from frbio_lite.export.ollama import HEADER, obstacle, write_modelfile
from frbio_lite.export.source import open_model, server_name

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}<|eot_id|>"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
Base = Callable[..., Path]


@pytest.fixture(autouse=True)
def _no_converter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")


def export(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    result = export(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stdout == "" and result.stderr.count("frbio: ") == 1
    return result.stderr


def instructions(modelfile: Path) -> list[tuple[str, str]]:
    """A Modelfile as Ollama's reader takes it: a keyword, then text to the end of the line or between triple quotes."""
    rows, found = modelfile.read_text(encoding="utf-8").split("\n"), []
    while rows:
        row = rows.pop(0)
        if not row or row.startswith("#"):
            continue
        keyword, value = row.split(" ", 1)
        if value.startswith('"""'):
            while value.count('"""') < 2:
                value += "\n" + rows.pop(0)
            value = value[3:-3]
        found.append((keyword, value))
    return found


def settings(model: Path, name: str, **changes: object) -> None:
    path = model / name
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**known, **changes}), encoding="utf-8")


def test_a_base_model_continues_text(make_base: Base, tmp_path: Path) -> None:
    model = make_base("llama", name="Mon Modèle")
    settings(model, "config.json", rope_theta=10000.0)
    (model / "README.md").write_text("---\nlicense: llama3.2\n---\n")
    result = export(model, "--format", "ollama")
    assert result.exit_code == 0 and result.stderr == ""
    where = tmp_path / "Mon Modèle-ollama" / "Modelfile"
    assert shlex.split(result.stdout) == ["ollama", "create", "mon-mod-le", "-f", str(where)]
    assert instructions(where) == [
        ("FROM", str(model)),
        ("TEMPLATE", "{{ .Prompt }}"),
        ("PARAMETER", 'stop "<|end|>"'),
        ("PARAMETER", "num_ctx 256"),
        ("LICENSE", "\nLicense of the base: llama3.2\nThe model's README.md lists the licenses of the texts it was adapted to.\n"
                    "Not for clinical decisions.\n"),
    ]  # fmt: skip


def test_a_run_is_its_merged_model(make_base: Base, tmp_path: Path) -> None:
    run = tmp_path / "essai"
    run.mkdir()
    (run / "recipe.yaml").write_text("name: essai\n")
    assert "no merged model yet" in refused(run, "--format", "ollama")
    make_base().rename(run / "merge")
    (run / "merge" / "manifest.json").write_text('{"kind": "MergedModel"}')
    for given in (run, run / "merge"):
        opened = open_model(given)
        assert (opened.directory, opened.name) == (run / "merge", "essai")
    assert export(run, "--format", "ollama").stdout.startswith("ollama create essai ")


@pytest.mark.parametrize(("template", "stop"), [(CHATML, "<|im_end|>"), (LLAMA3, "<|eot_id|>")])
def test_a_chat_template_of_turns_is_translated(make_base: Base, template: str, stop: str, tmp_path: Path) -> None:
    model = make_base("llama")
    settings(model, "tokenizer_config.json", bos_token="<|end|>")
    (model / "chat_template.jinja").write_text(template)
    found = dict(reversed(instructions(write_modelfile(open_model(model), tmp_path / "out"))))
    assert found["PARAMETER"] == f'stop "{stop}"'
    wanted = chat.known_format(model)
    assert wanted is not None and found["TEMPLATE"] == wanted.go
    assert wanted.go.count("{{") == wanted.go.count("}}") == 4 and "{role}" not in wanted.go


@pytest.mark.parametrize(
    "template",
    [
        "Today is {{ strftime_now('%d %b %Y') }}. " + CHATML,  # says more than turns
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHATML,
        "{% for m in messages %}{{ m.nothing.at.all }}{% endfor %}",
        "{% for m in messages",  # no template at all
        CHATML.replace("{{ m.content }}", "{{ m.content | upper }}"),
    ],
)
def test_another_chat_template_is_not_guessed_at(
    make_base: Base, template: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_base("llama")
    (model / "chat_template.jinja").write_text(template)
    assert ("TEMPLATE", "{{ .Prompt }}") in instructions(write_modelfile(open_model(model), tmp_path / "out"))
    assert "is not translated" in capsys.readouterr().err


def test_architectures_that_ollama_does_not_import_are_named(make_base: Base, tmp_path: Path) -> None:
    result = export(make_base("qwen3", name="q"), "--format", "ollama")
    assert (
        result.exit_code == 0 and "does not import Qwen3ForCausalLM" in result.stderr and "LLAMA_CPP" in result.stderr
    )
    assert (tmp_path / "q-ollama" / "Modelfile").is_file()
    for kind in ("smollm3", "mistral"):
        assert "does not import" in obstacle(open_model(make_base(kind, name=kind)))
    llama = make_base("llama", name="l")
    assert "rope_parameters" in obstacle(
        open_model(llama)
    )  # transformers 5 wrote it: Ollama would take another rotary base
    settings(llama, "config.json", rope_theta=500000.0)
    assert obstacle(open_model(llama)) == ""


def test_a_long_context_is_not_asked_for_at_once(make_base: Base, tmp_path: Path) -> None:
    model = make_base("gemma3")
    settings(model, "config.json", max_position_embeddings=131072)
    written = write_modelfile(open_model(model), tmp_path / "out")
    assert ("PARAMETER", "num_ctx 8192") in instructions(written) and "up to 131072" in written.read_text()


def test_nobodys_files_are_overwritten(make_base: Base, tmp_path: Path) -> None:
    model, out = make_base("llama"), tmp_path / "out"
    out.mkdir()
    (out / "Modelfile").write_text("FROM llama3.2\n")
    assert "was not written by frbio export" in refused(model, "--format", "ollama", "--out", out)
    assert (out / "Modelfile").read_text() == "FROM llama3.2\n"
    (out / "Modelfile").write_bytes(b"\xff\xfe")
    assert "was not written by frbio export" in refused(model, "--format", "ollama", "--out", out)
    (out / "Modelfile").write_text(f"{HEADER}\nFROM elsewhere\n")
    assert export(model, "--format", "ollama", "--out", out).exit_code == 0
    assert str(model) in (out / "Modelfile").read_text()
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(model, "--format", "ollama", "--out", tmp_path / "file")


@pytest.mark.parametrize("name", ["a\nFROM evil", 'a"b', "a\x1b[31m"])
def test_a_name_that_would_break_the_modelfile_is_refused(make_base: Base, name: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="cannot stand in a Modelfile"):
        write_modelfile(open_model(make_base("llama", name=name)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("token", ['</s>"', "a\nb", "", 7, {"content": None}])
def test_a_hostile_end_token_is_left_out(make_base: Base, token: object, tmp_path: Path) -> None:
    model = make_base("llama")
    settings(model, "tokenizer_config.json", eos_token=token)
    found = instructions(write_modelfile(open_model(model), tmp_path / "out"))
    assert [key for key, _ in found] == ["FROM", "TEMPLATE", "PARAMETER", "LICENSE"]


def test_what_is_no_model_is_refused_by_name(make_base: Base, tmp_path: Path) -> None:
    def said(**files: str) -> str:
        place = tmp_path / "it"
        place.mkdir(exist_ok=True)
        for path in place.iterdir():
            path.unlink()
        for name, text in files.items():
            (place / name.replace("__", ".")).write_text(text)
        return refused(place, "--format", "ollama")

    assert "not a directory" in refused(tmp_path / "missing", "--format", "ollama")
    assert "merge it into its base first" in said(adapter_config__json="{}")
    assert "holds Documents, not a model" in said(manifest__json='{"kind": "Documents"}')
    assert "is a pickle" in said(pytorch_model__bin="x", config__json="{}")
    assert "no *.safetensors" in said(config__json="{}")
    model = make_base("llama")
    settings(model, "config.json", quantization_config={"quant_method": "fp8"})
    assert "is quantised" in refused(model, "--format", "ollama")
    (model / "config.json").write_text("[]")
    assert "no mapping of settings" in refused(model, "--format", "ollama")


def test_one_thing_at_a_time(make_base: Base) -> None:
    model = make_base("llama")
    assert "one of them" in refused(model)
    assert "one of them" in refused(model, "--format", "gguf", "--push-to-hub", "a/b")
    assert "leave out --out" in refused(model, "--push-to-hub", "a/b", "--out", "c")


@pytest.mark.parametrize(
    ("text", "name"), [("Qwen3 0.6B", "qwen3-0.6b"), ("été!", "t"), ("...", "model"), ("a_b.c", "a_b.c"), ("", "model")]
)
def test_names_for_servers(text: str, name: str) -> None:
    assert server_name(text) == name
