"""Prompt files of sd-scripts and A1111, JSONL and CSV: what they say, and what is said where they are wrong."""

from __future__ import annotations

import io
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm.errors import InputError
from ldm.jobs import lines, prompts
from ldm.jobs.fields import Task
from ldm.options import KNOBS, Job

BASE = Job(prompt="")


def read(text: str | bytes, kind: str | None = "text", base: Job = BASE) -> prompts.Sheet:
    return prompts.parse(text if isinstance(text, bytes) else text.encode(), "f.txt", kind, base)


def jobs(text: str | bytes, kind: str | None = "text", base: Job = BASE) -> list[Job]:
    return [task.job for task in read(text, kind, base).tasks]


def one(text: str, kind: str | None = "text", base: Job = BASE) -> Task:
    (task,) = read(text, kind, base).tasks
    return task


def refusal(text: str | bytes, kind: str | None = "text", base: Job = BASE) -> str:
    with pytest.raises(InputError) as caught:
        read(text, kind, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def sizes(task: Task) -> dict[str, Any]:
    """The sizes told to the model, wherever they are kept."""
    names = ("original", "crop", "target", "negative_original", "negative_crop", "negative_target")
    return {name: pair for name in names if (pair := getattr(task.job, name))}


KOHYA = "masterpiece, best quality, 1girl, in white shirts --n low quality, worst quality --w 768 --h 832 --d 1 --l 7.5 --s 28"


def test_a_line_of_sd_scripts() -> None:
    assert one(KOHYA).job == replace(
        BASE,
        prompt="masterpiece, best quality, 1girl, in white shirts",
        negative="low quality, worst quality",
        width=768,
        height=832,
        seed=1,
        cfg=7.5,
        steps=28,
    )


def test_a_line_of_a1111() -> None:
    text = """--prompt "photo of a \\"red\\" fox" --negative_prompt 'blurry, bad' --width 1024 --height 768 --sampler_name "DPM++ 2M Karras"
--steps 10 --cfg_scale 8 --seed 9 --prompt four bare words
a bare prompt"""
    named, bare, prompt = jobs(text)
    assert named == replace(
        BASE, prompt='photo of a "red" fox', negative="blurry, bad", width=1024, height=768, sampler="dpmpp_2m", schedule="karras"
    )
    assert bare == replace(BASE, prompt="four bare words", steps=10, cfg=8.0, seed=9)
    assert prompt == replace(BASE, prompt="a bare prompt")


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("a cat --W 512 --N bad", {"prompt": "a cat", "width": 512, "negative": "bad"}),
        ("a cat --ss k_euler_a", {"prompt": "a cat", "sampler": "euler_a"}),
        ("a cat --steps 5 --cfg-scale 3 --scheduler SGM Uniform", {"prompt": "a cat", "steps": 5, "cfg": 3.0, "schedule": "sgm_uniform"}),
        ("a cat --s 5 --s 6", {"prompt": "a cat", "steps": 6}),
        ("a cat\t--s\t5", {"prompt": "a cat", "steps": 5}),
        ("  a cat  ", {"prompt": "a cat"}),
        ("a -- b --- c--d 5 x--w", {"prompt": "a -- b --- c--d 5 x--w"}),
        ("-- a", {"prompt": "-- a"}),
        ("--", {"prompt": "--"}),
        ("a cat --n", {"prompt": "a cat", "negative": ""}),
        ("a cat --n a --5 b", {"prompt": "a cat", "negative": "a --5 b"}),
        ("{a|b} \\(x:1.2\\) <lora:y:1> #1", {"prompt": "{a|b} \\(x:1.2\\) <lora:y:1> #1"}),
        ("--prompt '--steps 3'", {"prompt": "--steps 3"}),
        ("--prompt a '--n' b --seed -1", {"prompt": "a --n b", "seed": -1}),
        ("--prompt ''", {"prompt": ""}),
        ("--prompt a --schedule Automatic", {"prompt": "a", "schedule": None}),
        ("--prompt a --sampler_name 'Euler Karras' --scheduler Simple", {"prompt": "a", "sampler": "euler", "schedule": "simple"}),
        ("--scheduler Simple --prompt a --sampler_name 'Euler Karras'", {"prompt": "a", "sampler": "euler", "schedule": "simple"}),
        ("--prompt a --profile a1111 --set rng=philox --set ensd=31337",
         {"prompt": "a", "profile": "a1111", "overrides": {"rng": "philox", "ensd": "31337"}}),
        ("--prompt a --sigmas 14.6,1,0", {"prompt": "a", "sigmas": (14.6, 1.0, 0.0)}),
    ],
)  # fmt: skip
def test_lines(line: str, changes: dict[str, Any]) -> None:
    assert one(line).job == replace(BASE, **changes)


def test_what_a_line_says_wins_over_the_flags() -> None:
    base = Job(prompt="flag", negative="flag", steps=9, seed=5, batch=2, sampler="heun", schedule="simple")
    made = jobs("--steps 20\n--prompt a --seed 6 --batch_size 1 --sampler_name 'Euler Karras'\nb --ss ddim", base=base)
    assert made[0] == replace(base, steps=20)
    assert made[1] == replace(base, prompt="a", seed=6, batch=1, sampler="euler", schedule="karras")
    assert made[2] == replace(base, prompt="b", sampler="ddim")


def test_comments_blank_lines_ends_of_lines_and_a_mark_at_the_start() -> None:
    text = "\ufeff# one\r\n\r\na --s 1\r  # two\n\t\nb\u2028c\x0bd\r\n".encode()
    sheet = read(text)
    assert [(task.job.prompt, task.where) for task in sheet.tasks] == [("a", "f.txt:3"), ("b\u2028c\x0bd", "f.txt:6")]


def test_a_list_of_seeds_is_a_job_each_and_rounds_go_on() -> None:
    assert [(job.seed, job.batch) for job in jobs("a --d 3,1,5-6", base=replace(BASE, batch=4))] == [(3, 1), (1, 1), (5, 1), (6, 1)]
    assert [(job.seed, job.batch) for job in jobs("--prompt a --seed 7 --n_iter 3 --batch_size 2")] == [(7, 2), (9, 2), (11, 2)]
    assert [(job.seed, job.batch) for job in jobs("--prompt a --n_iter 2", base=replace(BASE, seed=7))] == [(7, 1), (8, 1)]
    assert [job.seed for job in jobs("--prompt a --seed -1 --n_iter 2")] == [-1, -1]
    assert [job.seed for job in jobs("--prompt a --n_iter 2")] == [None, None]


def test_a_size_that_the_seed_is_taken_from_is_none_where_a1111_has_none() -> None:
    assert one("--prompt a --seed_resize_from_h 64 --seed_resize_from_w 128").job.seed_resize == (64, 128)
    for none in (
        "--seed_resize_from_h 0 --seed_resize_from_w 0",
        "--seed_resize_from_h -1 --seed_resize_from_w -1",
        "--seed_resize_from_h 64",
    ):
        assert one(f"--prompt a {none}").job == replace(BASE, prompt="a")


def test_sizes_that_the_model_is_told() -> None:
    assert sizes(one("a --ow 2048 --oh 1024 --ct 1 --cl 2 --nw 64 --nh 128")) == {
        "original": (1024, 2048),
        "crop": (1, 2),
        "negative_original": (128, 64),
    }
    assert sizes(one("a --w 512 --h 256 --ow 2048 --cl 3")) == {"original": (256, 2048), "crop": (0, 3)}
    assert sizes(one('{"prompt": "", "target": [8, 9], "original": null}', "jsonl")) == {"target": (8, 9)}
    assert "original has one half alone" in refusal("a --ow 512")
    assert "column 3: ow '5x' is not acceptable: give a whole number" in refusal("a --ow 5x")
    assert "each 1 to 65536" in refusal("a --w 64 --h 64 --ow 70000")
    assert "original (1.5, 64) is not allowed" in refusal('{"prompt": "", "width": 64, "oh": 1.5}', "jsonl")
    assert "field 'crop': crop [1] is not acceptable: give two whole numbers" in refusal('{"prompt": "", "crop": [1]}', "jsonl")


def test_a_file_name_is_kept_and_checked() -> None:
    assert one("a --f dogs/rex.png").file == "dogs/rex"
    assert "f.txt:1: column 3: name '../x'" in refusal("a --f ../x")


def test_options_of_what_is_not_there_yet_are_left_out_with_a_note_each() -> None:
    sheet = read("a --t 0.5 --g 3\nb --am 0.8 --t 1 --cn x.png\n--prompt c --restore_faces true --sd_model x.ckpt")
    assert [task.job for task in sheet.tasks] == [replace(BASE, prompt=each) for each in "abc"]
    assert sheet.notes[0] == "f.txt:1: t (a picture to start from) is left out, and 1 times more"
    assert [note.split(":")[1] for note in sheet.notes] == ["1", "1", "2", "2", "3", "3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a\nb --stpes 3", "f.txt:2: column 3: unknown option --stpes: did you mean steps"),
        ("a --s x", "f.txt:1: column 3: s 'x' is not acceptable: give a whole number"),
        ("a --s", "s '' is not acceptable: give a whole number"),
        ("a --w 1023", "f.txt:1: width 1023 is not allowed: 16 to 8192, multiples of 8: the nearest is 1024"),
        ("a --s 0", "steps 0 is not allowed: 1 to 1000"),
        ("a --l 7,5", "l '7,5' is not acceptable: give a number"),
        ("a --d 1.5", "column 3: d '1.5' is not acceptable: give a whole number, or a list"),
        ("a --d 1,18446744073709551616", "seed 18446744073709551616 is not allowed: 0 to 18446744073709551615"),
        ("a --d 1,2 --batch 3", "a list of seeds says how many pictures"),
        ("a --ss dpm9", "column 3: unknown sampler 'dpm9'"),
        ("a --model x", "column 3: model is about the whole run: give it to the command"),
        ("a --profile nope", "unknown profile 'nope'"),
        ("a --set rng=7", "rng"),
        ("a --set rng", "field=value"),
        ("--seed 3", "no prompt: give one in the line"),
        ('--prompt "a', "f.txt:1: column 10: a quote \" that is not closed"),
        ("--prompt it's", "column 12: a quote ' that is not closed"),
        ("--prompt a\\", "column 11: a backslash at the end"),
        ("--prompt a --n_iter 0", "n_iter '0' is not acceptable: give a whole number from 1 to 1000"),
        ("a --s x\nb\nc --s y", "(1 more line is not acceptable either)"),
        ("a --s x\n" * 5, "(4 more lines are not acceptable either)"),
        ("a --s x\n" * 500, "(at least 99 more lines are not acceptable either)"),
        ("a" + " --n b" * 300, "more than 200 options in one line"),
        ("--n_iter 1000 --prompt a\n" * 101, "f.txt:101: more than 100,000 jobs"),
        ("", "f.txt: no job in it"),
        ("# a\n\n", "no job in it"),
        ("a\nb\0", "f.txt:2: the character NUL"),
        (b"a\r\nb\rc d \xff", "f.txt:3: byte 5 of the line is not UTF-8"),
        (b"\xff\xfea\0", "UTF-16: save it as UTF-8"),
        ("x" * 100_001, "f.txt:1: prompt has 100001 characters"),
        (b" " * (prompts.LIMIT + 1), "more than 33554432 bytes"),
    ],
)  # fmt: skip
def test_refusals_say_where(text: str | bytes, said: str) -> None:
    assert said in refusal(text)


def test_all_saved_fields_come_through_jsonl() -> None:
    full = Job("a", "b", 64, 128, 3, 2.5, "euler", "simple", None, 8, 2, "a1111", {"rng": "cpu"})
    saved = {name: getattr(full, name) for name, knob in KNOBS.items() if knob.saved}
    assert jobs(json.dumps(saved), "jsonl") == [full]
    assert jobs(json.dumps({**saved, "sigmas": [3, 1, 0.0], "schedule": None, "steps": 2}), "jsonl")[0].sigmas == (3.0, 1.0, 0.0)


def test_jsonl_takes_aliases_lists_and_texts() -> None:
    text = '\n{"prompt": "a", "negative_prompt": "b", "cfg_scale": "4", "sampler_name": "Euler a"}\r\n{"prompt": "c", "seed": [1, 2]}\n'
    one, two, three = jobs(text + '{"seed": "7", "negative": null}', "jsonl", replace(BASE, prompt="p", negative="n"))[:3]
    assert (one.negative, one.cfg, one.sampler, two.seed, three.seed) == ("b", 4.0, "euler_a", 1, 2)
    assert jobs('{"seed": "7", "negative": null}', "jsonl", replace(BASE, prompt="p", negative="n")) == [replace(BASE, prompt="p", seed=7)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "f.txt:1: column 2: not JSON"),
        ("[]", "a JSON object of at most 200 fields is needed"),
        ('{"prompt": "a", "prompt": "b"}', "a name stands twice"),
        ('{"cfg": NaN, "prompt": ""}', "NaN is not a number"),
        ('{"prompt": "", "cfg": 1e999}', "cfg inf is not allowed"),
        ('{"prompt": 3}', "prompt is int: give text"),
        ('{"prompt": null}', "give text"),
        ('{"prompt": "\\u0000"}', "the character NUL"),
        ('{"prompt": "\\ud800"}', "not UTF-8"),
        ('{"prompt": "", "stpes": 3}', "field 'stpes': unknown 'stpes': did you mean steps"),
        ('{"prompt": "", "s": 3}', "field 's': unknown 's'"),
        ('{"prompt": "", "device": "cpu"}', "about the whole run"),
        ('{"prompt": "", "seed": [1, [2]]}', "field 'seed': a list or an object inside another"),
        ('{"prompt": "", "seed": [1.5]}', "whole numbers"),
        ('{"prompt": "", "seed": true}', "seed True is not a whole number"),
        ('{"prompt": "", "seed": ' + "9" * 5000 + "}", "not acceptable as JSON"),
        ('{"prompt": "", "sampler": 3}', "the name of a sampler"),
        ('{"prompt": "", "overrides": {"rng": 3}}', "an object of texts"),
        ('{"prompt": "", "sigmas": [1, 2]}', "falling"),
        ('{"prompt": "", "file": 3}', "give text"),
        ('{"prompt": "", "batch": null}', "batch None is not a whole number"),
        ("[" * 100_000, "not"),
        ('{"a":' * 100_000, "not"),
    ],
)
def test_refusals_of_jsonl(line: str, said: str) -> None:
    assert said in refusal(line, "jsonl")


def test_csv() -> None:
    text = '\ufeffprompt,seed,cfg,negative\r\n"a, ""b""\nc",7,,\r\n,,,\r\nd,"1,2",3.5,e\r\n'
    first, second, third = jobs(text, "csv")
    assert first == replace(BASE, prompt='a, "b"\nc', seed=7)
    assert (second, third) == tuple(replace(BASE, prompt="d", seed=seed, cfg=3.5, negative="e") for seed in (1, 2))
    assert [task.where for task in read(text, "csv").tasks] == ["f.txt:2", "f.txt:5", "f.txt:5"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_tables_of_other_languages(mark: str) -> None:
    assert jobs(f"prompt{mark}cfg\na, b{mark}2.5\n", "csv") == [replace(BASE, prompt="a, b", cfg=2.5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompt,seed\na,x\n", "f.txt:2: field 'seed': seed 'x' is not acceptable"),
        ("prompt,stpes\na,3\n", "f.txt:2: field 'stpes': unknown 'stpes'"),
        ("prompt,prompt\na,b\n", "f.txt:1: the header names a column twice"),
        ("prompt,\na,b\n", "without a name"),
        ('"a\r\nb"\nc\n', r"f.txt:3: field 'a\r\nb': unknown 'a\r\nb'"),
        ("prompt\na,b\n", "f.txt:2: 2 cells under 1 columns"),
        ('prompt\n"a\n', "f.txt:2: not a table"),
        ("seed\n3\n", "no prompt"),
        ("\n\n", "no job in it"),
        ("prompt\n", "no job in it"),
        ("prompt\n" + "x" * 200_000, "not a table"),
    ],
)
def test_refusals_of_csv(text: str, said: str) -> None:
    assert said in refusal(text, "csv")


def test_files_stdin_and_pipes(tmp_path: Path) -> None:
    record = '{"prompt": "x"}'
    for name, text in (("a.txt", "x"), ("b.JSONL", record), ("c.csv", "prompt\nx"), ("d", "x"), ("e", record), ("f.md", "x")):
        (tmp_path / name).write_text(text)
        assert [task.job.prompt for task in prompts.read(str(tmp_path / name), BASE).tasks] == ["x"]
    assert prompts.read("-", BASE, io.BytesIO(b"{a|b} cat")).tasks[0].job.prompt == "{a|b} cat"
    assert prompts.read("-", BASE, io.BytesIO(b' \n{ "prompt": "cat"}')).tasks[0].where == "stdin:2"
    for name, said in ((".", "Is a directory"), ("none.txt", "does not exist"), ("x.json", ".json is not read"), ("a\0b", "is not a file")):
        with pytest.raises(InputError, match=said):
            prompts.read(str(tmp_path / name) if name != "a\0b" else name, BASE)


def test_a_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="Permission denied"):
        prompts.read(str(path), BASE)


@given(st.text(alphabet=st.sampled_from("ab \t\"'\\-#é")))
def test_words_are_quoted_as_in_a_shell(text: str) -> None:
    try:
        expected: list[str] | None = shlex.split(text)
    except ValueError:
        expected = None
    try:
        got: list[str] | None = [word for _, word, _ in lines._tokens(text, 0)]
    except InputError:
        got = None
    assert got == expected


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), max_size=40)


@given(TEXT, TEXT, st.integers(-1, 2**64 - 1))
def test_what_is_quoted_comes_back(prompt: str, negative: str, seed: int) -> None:
    job = one(f"--prompt {shlex.quote(prompt)} --negative_prompt {shlex.quote(negative)} --seed {seed}").job
    assert (job.prompt, job.negative, job.seed) == (prompt, negative, seed)


@given(st.binary() | st.text().map(str.encode), st.sampled_from(["text", "jsonl", "csv", None]))
def test_any_bytes_have_an_answer(content: bytes, kind: str | None) -> None:
    try:
        prompts.parse(content, "f", kind, BASE)
    except InputError as error:
        assert "\n" not in str(error)
