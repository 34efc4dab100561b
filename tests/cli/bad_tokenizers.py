"""Tokenizers and chat templates that are missing or broken, or ask for more than is allowed."""

from __future__ import annotations

from functools import partial

from tests.cli import bad_checkpoints
from tests.cli.bad_checkpoints import Case, cut
from tests.cli.command import Place, edit_json

CASES: list[Case] = []
bad = partial(bad_checkpoints.bad, cases=CASES)


@bad("no tokenizer", "--tokenizer")
def no_tokenizer_for_rows_of_text(place: Place) -> list[object]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place.base / name).unlink()
    return place.repair()


@bad("no tokenizer", "--evaluate none")
def no_tokenizer_for_the_evaluation(place: Place) -> list[object]:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (place.base / name).unlink()
    rows = place.write("rows.jsonl", "".join(f'{{"input_ids": [{n}, 7]}}\n' for n in range(5, 9)))
    return ["repair", place.base, "--adapter", place.adapter, "--harmful", rows, "--out", place.out]


@bad("tokenizer", "cannot be opened")
def broken_tokenizer(place: Place) -> list[object]:
    (place.base / "tokenizer.json").write_text('{"version": "1.0"}')
    return place.repair()


@bad("tokenizer", "cannot be opened")
def tokenizer_cut_short(place: Place) -> list[object]:
    cut(place.base / "tokenizer.json", 200)
    return place.repair()


@bad("nowhere", "tokenizer")
def tokenizer_that_is_not_there(place: Place) -> list[object]:
    return place.repair("--tokenizer", place.root / "nowhere")


@bad("chat template", "--template")
def broken_chat_template(place: Place) -> list[object]:
    (place.base / "chat_template.jinja").write_text("{% for m in messages %}{{ m }")
    return place.repair()


@bad("no chat template", "--template alpaca")
def chat_without_a_chat_template(place: Place) -> list[object]:
    (place.base / "chat_template.jinja").unlink()
    return place.repair("--template", "chat")


def chat_template(name: str, text: str, *words: str) -> None:
    """Register the case of a repair with this chat template."""

    def make(place: Place) -> list[object]:
        (place.base / "chat_template.jinja").write_text(text)
        return place.repair()

    CASES.append((f"chat_template_{name}", make, ("harmful.jsonl:1", "chat template", "--template", *words)))


chat_template("that_asks_nothing", "hello", "leaves out the prompt")
chat_template("that_divides_by_zero", "{{ 1 / 0 }}", "division by zero")
chat_template("that_calls_itself", "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion")
chat_template("that_draws_at_random", "{{ messages | random }}", "draws at random")
chat_template("that_writes_an_address", "{{ messages | map(attribute='content') }}", "an object instead of a text")
chat_template("that_nests_too_deep", "{% for a in messages %}" * 30 + "{% endfor %}" * 30, "nested")
chat_template("that_writes_half_a_character", "{{ '\\ud800' }}", "half a surrogate pair")
chat_template("that_never_ends", "{% for i in range(10 ** 9) %}{% endfor %}", "too big")


@bad("the tokenizer's chat template", "more than once", "--template")
def chat_template_that_says_answers_twice(place: Place) -> list[object]:
    twice = "{% for m in messages %}{{ m.content }} {{ m.content }}{% endfor %}"
    (place.base / "chat_template.jinja").write_text(twice)
    return place.repair()


@bad("chat template needs more than 1000 MB of memory", "--template", "another tokenizer")
def chat_template_that_takes_all_memory(place: Place) -> list[object]:
    (place.base / "chat_template.jinja").write_text("{{ 'a' * 10 ** 10 }}")
    return place.repair()


@bad("chat template gives more than 20", "characters", "--template", "another tokenizer")
def chat_template_that_writes_a_book(place: Place) -> list[object]:
    book = "{{ 'zob ' * 10 ** 6 }}{% for m in messages %}{{ m.content }}{% endfor %}"
    (place.base / "chat_template.jinja").write_text(book)
    return place.repair()


@bad("the tokenizer's chat template has 300,", "characters", "--template", "another tokenizer")
def chat_template_that_is_a_book(place: Place) -> list[object]:
    path = place.base / "chat_template.jinja"
    path.write_text(path.read_text() + "{# " + "z" * 300_000 + " #}")
    return place.repair()


@bad("tokenizer's chat template is no text", "--template")
def chat_template_of_a_number(place: Place) -> list[object]:
    (place.base / "chat_template.jinja").unlink()
    edit_json(place.base / "tokenizer_config.json", chat_template=5)
    return place.repair()


@bad("tokenizer", "cannot be opened", "--tokenizer")
def tokenizer_configuration_that_is_a_list(place: Place) -> list[object]:
    (place.base / "tokenizer_config.json").write_text("[]")
    return place.repair()


@bad("chat template", "named default", "--template")
def chat_templates_of_which_none_is_the_default(place: Place) -> list[object]:
    path = place.base / "chat_template.jinja"
    templates = [{"name": name, "template": path.read_text()} for name in ("rag", "tool_use")]
    path.unlink()
    edit_json(place.base / "tokenizer_config.json", chat_template=templates)
    return place.repair()


@bad("base", "custom code", "--tokenizer", "--trust-remote-code")
def tokenizer_that_its_own_code_defines(place: Place) -> list[object]:
    auto_map = {"AutoTokenizer": ["tokenization_zorbik.Zorbik", None]}
    edit_json(place.base / "tokenizer_config.json", tokenizer_class="Zorbik", auto_map=auto_map)
    return place.repair()


def tokenizer_says(name: str, *words: str, **parts: object) -> None:
    """Register the case of a tokenizer.json with other parts: what its library says is one line."""

    def make(place: Place) -> list[object]:
        edit_json(place.base / "tokenizer.json", **parts)
        return place.repair()

    CASES.append((f"tokenizer_{name}", make, ("base", "the tokenizer", "--tokenizer", "fetch", *words)))


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
tokenizer_says("of_no_known_version", "Unknown tokenizer version", version="zorbik")
tokenizer_says("without_a_model", "did not match any variant", model={})
tokenizer_says("of_ids_below_zero", "-1", model={"type": "WordLevel", "vocab": {"zob": -1}, "unk_token": "zob"})
tokenizer_says("without_its_unknown_token", "UNK", model={"type": "WordLevel", "vocab": {}, "unk_token": "zob"})
tokenizer_says("with_truncation_of_nothing", "missing field", truncation={})
tokenizer_says("of_a_broken_pattern", "parenthesis", pre_tokenizer={**SPLIT, "pattern": {"Regex": "("}})
tokenizer_says(
    "of_an_endless_pattern",
    "cannot encode a text",
    "retry-limit",
    pre_tokenizer={**SPLIT, "pattern": {"Regex": "(.+)+(?!.|$)"}},
)


@bad("base", "the tokenizer cannot be opened", "normalized", "--tokenizer", "fetch")
def tokenizer_that_lacks_a_field(place: Place) -> list[object]:
    path = place.base / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalized"', '"normalised"', 1))
    return place.repair()


@bad("base", "tokenizer.json", "1000000000 times longer", "--tokenizer", "fetch")
def tokenizer_that_makes_texts_endless(place: Place) -> list[object]:
    step = {"type": "Replace", "pattern": {"String": "o"}, "content": "o" * 10}
    edit_json(place.base / "tokenizer.json", normalizer={"type": "Sequence", "normalizers": [step] * 9})
    return place.repair()


@bad("base", "tokenizer_config.json", "model_max_length is not a number", "--tokenizer")
def tokenizer_of_a_length_in_words(place: Place) -> list[object]:
    edit_json(place.base / "tokenizer_config.json", model_max_length="zorbik")
    return place.repair()
