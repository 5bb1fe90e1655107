"""The verb: from a run, a Hugging Face folder and a GGUF file, to a terminal and a file; and what mistakes get."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import jax
import numpy as np
import pytest
import soundfile
import yaml
from flax import nnx
from interop.test_gguf import CONFIG as GGUF_CONFIG
from interop.test_gguf import write as write_gguf
from weights.test_specials import make as make_tokenizer

from helpers import params_of
from lmkit.checkpoint import Checkpoints
from lmkit.config.base import ConfigError
from lmkit.config.entry import run_verb
from lmkit.config.saved import write_model, write_tokenizer
from lmkit.config.sections.checkpoint import CheckpointConfig
from lmkit.config.sections.families import BERTConfig, EncDecConfig, GPTConfig
from lmkit.config.sections.generate import GenerateConfig
from lmkit.config.sections.mesh import MeshConfig
from lmkit.config.sections.model import Norm, NormOrder, Position
from lmkit.config.sections.optim import OptimConfig
from lmkit.config.sections.tokenizer import TokenizerConfig, TokenizerKind
from lmkit.core.state import init_state, make_blueprint
from lmkit.data.sources.audio import log_mel, read_audio
from lmkit.data.tokens.tokenizer import ByteTokenizer, load_tokenizer
from lmkit.data.tokens.vocabulary import train_bpe
from lmkit.decode import Decoder, Prompts, Sampling
from lmkit.generate.__main__ import ABOUT, READS
from lmkit.generate.main import read_prompts
from lmkit.interop import save_folder
from lmkit.models import build_model
from lmkit.parallel.mesh import build_mesh
from lmkit.weights import open_model, start_tokenizer

TEXT: dict[str, Any] = {"num_layers": 2, "num_heads": 4, "embed_dim": 32, "init_std": 0.4}
WINDOW = 40  # places of sound: 0.8 s
GREEDY = ["generate.temperature=0", "generate.max_new_tokens=12"]


def generate(*words: str) -> int:
    return run_verb("generate", "lmkit.generate.main:generate", ABOUT, list(words), reads=READS)


def make_run(folder: Path, config: Any, optim: OptimConfig | None = None) -> Any:
    """What a run leaves, as far as generate reads it. Returns the state."""
    blueprint = make_blueprint(config, optim or OptimConfig(), 10, build_mesh(MeshConfig(), jax.devices()[:1]))
    state = init_state(blueprint, 0)
    if "ema" in state:
        state["ema"] = jax.tree.map(lambda x: x * 1.5, state["ema"])
    folder.mkdir()
    write_model(folder, config)
    ByteTokenizer().save(folder / "tokenizer.json")
    (folder / "config.yaml").write_text(yaml.safe_dump({"optim": {"ema": 0.9} if "ema" in state else {}}))
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointConfig())
    checkpoints.save(10, state)
    checkpoints.close()
    return state


GPT = GPTConfig(**TEXT, vocab_size=264, sliding_window=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    make_run(folder, GPT)
    return folder


def expected_text(config: Any, params: Any, text: str, new: int = 12) -> str:
    """The likeliest bytes after a text, decoded directly."""
    graph = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
    decoder = Decoder(lambda p: nnx.merge(graph, nnx.State(p)), config, Sampling(), end_ids=[256], vocab_size=257)
    (ids,) = decoder.generate(params, Prompts([[256, *text.encode()]]), max_new_tokens=new)
    return ByteTokenizer().decode(ids)


def test_a_run_and_a_checkpoint_inside_one(run: Path, capsys: pytest.CaptureFixture) -> None:
    """Any prompt is taken as it stands; the text is that of the decoder."""
    prompt = "def f(x, y): {\"a\": [1, ${b}]}, \\ 'q'"
    expected = expected_text(GPT, init_params(), prompt)
    for path in (run, run / "checkpoints" / "10"):
        assert generate(f"init_from={path}", f"generate.prompt={prompt}", *GREEDY) == 0
        said = capsys.readouterr()
        assert said.out == prompt + expected + "\n"
        assert "tokens in" in said.err


def init_params(config: Any = GPT, **optim: Any) -> Any:
    blueprint = make_blueprint(config, OptimConfig(**optim), 10, build_mesh(MeshConfig(), jax.devices()[:1]))
    return init_state(blueprint, 0)["params"]


def test_a_run_from_a_folder_with_other_special_tokens(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The run says by itself what ends its texts, though config.yaml says what was asked for."""
    config = start_tokenizer(TokenizerConfig(kind=TokenizerKind.init), str(make_tokenizer("llama", tmp_path)))
    codec, run = load_tokenizer(config.path, config), tmp_path / "run"
    make_run(run, GPT)
    codec.save(run / "tokenizer.json")
    (run / "config.yaml").write_text("tokenizer: {kind: init}\ninit_from: gone")
    write_tokenizer(run, config)
    assert generate(f"init_from={run}", "generate.prompt=ab", *GREEDY) == 0
    assert capsys.readouterr().out.startswith("ab")
    found = open_model(str(run)).codec()
    assert found.end_ids == (codec.end_id,) == (codec.inner.token_to_id("</s>"),)  # type: ignore[attr-defined]
    assert found.encode("ab") == [codec.end_id, *codec.encode_batch(["ab"])[0].tolist()]


def test_the_moving_average_is_what_speaks(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    state = make_run(tmp_path / "run", GPT, OptimConfig(ema=0.9))
    assert generate(f"init_from={tmp_path / 'run'}", "generate.prompt=ab", *GREEDY) == 0
    assert capsys.readouterr().out == "ab" + expected_text(GPT, state["ema"], "ab") + "\n"


def test_a_mesh_changes_nothing(run: Path, capsys: pytest.CaptureFixture) -> None:
    words = [f"init_from={run}", "generate.prompt=ab", "generate.max_new_tokens=8", "run.seed=5"]
    for mesh in ([], ["mesh.data=2", "mesh.fsdp=2", "mesh.tensor=2"]):
        assert generate(*words, *mesh) == 0
    said = capsys.readouterr().out
    assert said[: len(said) // 2] * 2 == said


def test_prompts_samples_and_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in ("é, one", "two\nlines")))
    words = [f"init_from={run}", f"generate.prompts_file={prompts}", "generate.num_samples=2", f"generate.out={out}"]
    assert generate(*words, "generate.max_new_tokens=6", "generate.batch_size=3") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == ["é, one"] * 2 + ["two\nlines"] * 2
    assert {row["ended"] for row in rows} <= {"length", "end"}
    assert rows[0]["text"] != rows[1]["text"]
    shown = capsys.readouterr().out
    places = [shown.index(f"== {number} of 4\n") for number in (1, 2, 3, 4)]
    assert places == sorted(places)
    assert all(row["prompt"] + row["text"] in shown for row in rows)
    first = [row["text"] for row in rows]
    assert generate(*words, "generate.max_new_tokens=6", "generate.batch_size=4") == 0
    assert [json.loads(line)["text"] for line in out.read_text().splitlines()] == first


@pytest.mark.parametrize(("name", "content", "expected"), [
    ("p.jsonl", '{"prompt": "a\u2028b"}\n\n{"prompt": ""}'.encode(), ["a\u2028b", ""]),
    ("p.JSONL", b'\xef\xbb\xbf{"prompt": "a"}\r\n', ["a"]),
    ("p.txt", b"\xef\xbb\xbfa\x0cb\xe2\x80\xa8c\r\n \nd", ["a\x0cb\u2028c", "d"]),
    ("p.csv", b"prompt,other\n\"a,\nb\",1\n", ["a,\nb"]),
    ("p.json", b'[{"prompt": "a"}]', ["a"]),
    ("p.jsonl", b'{"prompt": "a"}\n{"prompt": null}', "p.jsonl line 2 has no text under 'prompt', it has: prompt$"),
    ("p.jsonl", b'{"prompt": "\\ud800"}', "line 1 has half a character"),
    ("p.jsonl", b'["a"]', "line 1 is a list, not an object"),
    ("p.jsonl", b'{"text": "a"}', "line 1 has no text under 'prompt', it has: text$"),
    ("p.txt", b"a\nb\xe9", "p.txt: is not UTF-8: byte 0xe9 at 3"),
    ("p.csv", b"text\na\n", "p.csv has no column 'prompt', it has: text$"),
    ("p.txt", b"\n", "it is empty"),
])  # fmt: skip
def test_a_file_of_prompts(tmp_path: Path, name: str, content: bytes, expected: list[str] | str) -> None:
    (tmp_path / name).write_bytes(content)
    settings = GenerateConfig(prompts_file=str(tmp_path / name))
    if isinstance(expected, list):
        assert read_prompts(settings) == expected
        return
    with pytest.raises(ConfigError, match=f"^generate.prompts_file=.*{expected}"):
        read_prompts(settings)


def test_stop_strings(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    expected = expected_text(GPT, init_params(), "ab")
    stop = next(letter for letter in expected[1:] if letter.isascii() and letter.isalnum())
    words = [f"init_from={run}", "generate.prompt=ab", f"generate.out={tmp_path / 'out'}", *GREEDY]
    assert generate(*words, f"generate.stop=[never,{stop}]") == 0
    row = json.loads((tmp_path / "out").read_text())
    assert (row["text"], row["ended"]) == (expected[: expected.index(stop)], "stop")
    assert capsys.readouterr().out == "ab" + row["text"] + "\n"


def test_an_encoder_decoder_with_beams(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = EncDecConfig(**TEXT, vocab_size=264)
    make_run(tmp_path / "run", config)
    words = [f"init_from={tmp_path / 'run'}", "generate.prompt=abc", *GREEDY, f"generate.out={tmp_path / 'out'}"]
    assert generate(*words, "generate.num_beams=4", "generate.num_samples=3") == 0
    rows = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    assert len({row["text"] for row in rows}) == 3
    assert [row["score"] for row in rows] == sorted((row["score"] for row in rows), reverse=True)
    assert "== 3 of 3: abc" in capsys.readouterr().out


def make_folder(path: Path, **special: Any) -> tuple[GPTConfig, Any, Any]:
    """A Hugging Face folder with a tokenizer of its own."""
    tokenizer = train_bpe(["some words and some more words, again"] * 50, TokenizerConfig(vocab_size=270))
    tokenizer.save(path.parent / "tokenizer.json")
    config = GPTConfig(**TEXT, vocab_size=270, position=Position.learned, norm=Norm.layernorm, bias=True,
                       max_seq_len=32, mlp_dim=64, tie_embeddings=True)  # fmt: skip
    params = params_of(build_model(config, nnx.Rngs(0)))[1]
    save_folder(path, config, params, tokenizer=path.parent / "tokenizer.json")
    (path / "generation_config.json").write_text(json.dumps(special))
    return config, params, tokenizer


def test_a_hugging_face_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Its tokenizer, and the end tokens of its generation_config.json, one or several."""
    config, params, tokenizer = make_folder(tmp_path / "folder")
    prompt = "some words"
    ids = tokenizer.encode_batch([prompt])[0].tolist()
    graph = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
    decoder = Decoder(lambda p: nnx.merge(graph, nnx.State(p)), config, Sampling())
    (tokens,) = decoder.generate(params, Prompts([ids]), max_new_tokens=12)
    for ends in (None, tokens[5], [269, tokens[5]]):
        (tmp_path / "folder" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        config_json = json.loads((tmp_path / "folder" / "config.json").read_text()) | {"eos_token_id": None}
        (tmp_path / "folder" / "config.json").write_text(json.dumps(config_json))
        assert generate(f"init_from={tmp_path / 'folder'}", f"generate.prompt={prompt}", *GREEDY) == 0
        kept = tokens if ends is None else tokens[: tokens.index(tokens[5])]
        assert capsys.readouterr().out == tokenizer.decode(ids + kept) + "\n"


def make_gguf(path: Path, model: str = "gpt2", pre: str = "gpt-2") -> Any:
    tokenizer = train_bpe(["some words and some more words, again"] * 50, TokenizerConfig(vocab_size=270))
    inner = json.loads(tokenizer.inner.to_str())
    names = sorted(tokenizer.inner.get_vocab(), key=tokenizer.inner.get_vocab().get)  # type: ignore[arg-type]

    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model(model)
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(names)
        writer.add_token_types([3 if name == "<|endoftext|>" else 1 for name in names])
        writer.add_token_merges([" ".join(merge) for merge in inner["model"]["merges"]])
        writer.add_eos_token_id(tokenizer.end_id)
        writer.add_bos_token_id(tokenizer.end_id)
        writer.add_add_bos_token(True)

    config = dataclasses.replace(GGUF_CONFIG, vocab_size=len(names))  # of the embedding, as in real files
    params = params_of(build_model(config, nnx.Rngs(0)))[1]
    write_gguf(path, jax.tree.map(np.asarray, params), gguf.GGMLQuantizationType.F32, tokenizer=add)
    return tokenizer


def test_a_gguf_file_brings_its_tokenizer(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    from lmkit.interop import read_gguf_tokenizer

    tokenizer = make_gguf(tmp_path / "model.gguf")
    found = read_gguf_tokenizer(tmp_path / "model.gguf")
    text = "some more words, Grüße again 123"
    assert found.inner.encode(text).ids == tokenizer.encode_batch([text])[0].tolist()
    assert (found.begin, found.end) == ([tokenizer.end_id], [tokenizer.end_id])
    assert found.inner.decode(found.inner.encode(text + "<|endoftext|>").ids, skip_special_tokens=True) == text
    assert generate(f"init_from={tmp_path / 'model.gguf'}", "generate.prompt=some", *GREEDY) == 0
    assert capsys.readouterr().out.startswith("some")


@pytest.mark.parametrize(("words", "parts"), [
    ([], ["init_from="]),
    (["init_from=nowhere"], ["nowhere", "nothing there"]),
    (["init_from={tmp}"], ["neither a run", "model.yaml", "config.json", ".gguf"]),
    (["init_from={run}", "generate.num_beams=3"], ["num_beams=3", "temperature=0.7", "generate.temperature=0"]),
    (["init_from={run}", "generate.num_beams=2", "generate.num_samples=3", "generate.temperature=0"],
     ["num_samples=3", "num_beams=2"]),
    (["init_from={run}", "generate.prompts_file=nowhere.txt"], ["nowhere.txt"]),
    (["init_from={run}", "generate.prompt=x", "generate.prompts_file=y"], ["'x'", "prompts_file=y"]),
    (["init_from={run}", "generate.top_p=1.5"], ["generate.top_p=1.5", "at most 1"]),
    (["init_from={run}", "generate.topp=0.5"], ["generate.topp", "'generate.top_p'"]),
    (["init_from={run}", "generate.out=/nowhere/x"], ["/nowhere/x"]),
    (["init_from={run}", "mesh.data=3"], ["data=3", "8"]),
    (["init_from={run}", "mesh.tensor=8"], ["kernel", "size 4", "tensor = 8"]),
    (["init_from={folder}", "generate.prompt=ab", "generate.max_new_tokens=40"],
     ["max_new_tokens=40", "32", "set generate.max_new_tokens="]),
    (["init_from={folder}", "generate.prompt="], ["empty prompt"]),
    (["init_from={folder}", "generate.prompt=" + "a b" * 40], ["32", "shorten it"]),
    (["init_from={bare}"], ["tokenizer.json", "tokenizer.path="]),
    (["init_from={bert}"], ["BERTConfig", "gpt or encdec"]),
    (["init_from={audio}"], ["set generate.audio="]),
    (["init_from={audio}", "generate.audio=[none.wav]"], ["none.wav"]),
    (["init_from={run}", "generate.audio=[none.wav]"], ["reads text"]),
    (["init_from={run}", "generate.language=de"], ["generate.language=de without generate.audio"]),
    (["init_from={run}", "generate.audio=[none.wav]", "generate.prompt=x"], ["reads text; set generate.prompt="]),
    (["init_from={gguf}"], ["'llama'", "tokenizer.path="]),
])  # fmt: skip
def test_mistakes_get_one_line(
    run: Path, tmp_path: Path, words: list[str], parts: list[str], capsys: pytest.CaptureFixture
) -> None:
    places = {name: tmp_path / name for name in ("folder", "bare", "bert", "audio", "gguf")}
    for name, path in places.items():
        if f"{{{name}}}" in words[0] if words else False:
            if name in ("folder", "bare"):
                make_folder(path)
                if name == "bare":
                    (path / "tokenizer.json").unlink()
            elif name == "gguf":
                places[name] = tmp_path / "model.gguf"
                make_gguf(places[name], model="llama")
            else:
                small = TEXT | {"vocab_size": 264}
                make_run(path, BERTConfig(**small) if name == "bert" else EncDecConfig(**small, num_mels=8))
    given = [word.format(run=run, tmp=tmp_path, **places) if word.startswith("init_from") else word for word in words]
    assert generate(*given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("lmkit.generate: ")
    for part in parts:
        assert part in line, line


def test_a_model_that_listens(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Sounds of different lengths, together and alone: the same text, and that of the decoder."""
    config = EncDecConfig(**TEXT, vocab_size=264, num_mels=8, norm_order=NormOrder.pre)
    state = make_run(tmp_path / "run", config)
    (tmp_path / "run" / "config.yaml").write_text(f"data: {{seq_len: {WINDOW}}}")
    files = []
    for number, length in enumerate((4000, 9000)):
        files.append(tmp_path / f"{number}.wav")
        soundfile.write(files[-1], 0.3 * np.sin(np.arange(length) * 0.03 * (number + 1)), 16000)
    out = tmp_path / "out.jsonl"
    common = [f"init_from={tmp_path}/run", *GREEDY, f"generate.out={out}"]
    assert generate(*common, f"generate.audio=[{files[0]},{files[1]}]") == 0
    together = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    alone = []
    for file in files:
        assert generate(*common, f"generate.audio=[{file}]") == 0
        alone += [json.loads(line)["text"] for line in out.read_text().splitlines()]
    assert together == alone
    frames = log_mel(read_audio(files[1]), 8, num_frames=2 * WINDOW)[None]
    graph = params_of(nnx.eval_shape(lambda: build_model(config, nnx.Rngs(0))))[0]
    decoder = Decoder(lambda p: nnx.merge(graph, nnx.State(p)), config, Sampling(), end_ids=[256], vocab_size=257)
    prompts = Prompts([[256]], frames, np.ones((1, frames.shape[1] // 2), np.int32))
    (ids,) = decoder.generate(state["params"], prompts, max_new_tokens=12)
    assert ByteTokenizer().decode(ids) == alone[1]
    capsys.readouterr()
    soundfile.write(tmp_path / "long.wav", 0.3 * np.sin(np.arange(30_000) * 0.03), 16000)
    assert generate(*common, f"generate.audio=[{tmp_path / 'long.wav'},{files[1]}]", "generate.num_samples=2") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["text"] for row in rows[2:]] == [alone[1]] * 2, "one long file does not change the others"
    assert rows[0] == rows[1]
    assert rows[0]["tokens"] == 36, "of three windows, 12 each"
    assert capsys.readouterr().out.count("== ") == 4
    (tmp_path / "bare.raw").write_bytes(bytes(4000))
    assert generate(*common, f"generate.audio=[{tmp_path / 'bare.raw'}]") == 2
    assert "bare.raw has no header" in capsys.readouterr().err
