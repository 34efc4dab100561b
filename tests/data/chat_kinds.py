"""Made-up chat templates that differ in the text around an answer, each with the expected result."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from antidote_llm.data.records import Turn
from tests.data.byte_level import EOS, byte_tokenizer

MARKS = (
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|turn|>",
    "<|end|>",
    "<|done|>",
    "<|say|>",
    "<|muse|>",
    "<|mused|>",
)
SYSTEM = Turn("system", "be kind")
_EACH = "{% for m in messages %}"
_BLOCKS = _EACH + "{{ '<|turn|>' + m.role + '\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
_ASKED = "{% if add_generation_prompt %}{{ '<|turn|>assistant\\n' }}{% endif %}"
_INST = (
    _EACH + "{% if m.role == 'user' %}{{ (eos_token if loop.index0 else '') + '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content }}{% endif %}{% endfor %}"
)
_LAST = (
    _EACH + "{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<|done|>' if loop.last else '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_FINAL = (
    _EACH + "{{ '<|' + m.role + '|>\\n' + m.content + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_MARKED = (
    _EACH + "{{ '<|turn|>' + m.role }}{% if m.role == 'assistant' %}<|say|>{% endif %}{{ m.content + '<|end|>' }}"
    "{% endfor %}"
)
_NUMBERED = _EACH + "{{ '[' ~ loop.index ~ '] ' ~ m.role ~ ': ' ~ m.content ~ '<|end|>\\n' }}{% endfor %}"
_PARTS = (
    _EACH + "{{ '<|' + m.role + '|>' }}{% for p in m.content %}{{ p['text'] if p['type'] == 'text' }}{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Kind:
    """One template: the prompt ``zob`` and the answer ``kad`` through it."""

    template: str
    prompt: str
    answer: str
    history: tuple[Turn, ...] = ()


KINDS = {
    "opens the answer's turn always": Kind(
        _EACH + "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}<|assistant|>",
        "<|user|>zob<|end|><|assistant|>",
        "kad<|end|>",
    ),
    "the same with a space that only an open turn has": Kind(
        _EACH + "{{ '<|' + m.role + '|> ' + m.content + ' <|end|>' }}{% endfor %}{{ ' <|assistant|> ' }}",
        "<|user|> zob <|end|> <|assistant|> ",
        "kad <|end|>",
    ),
    "opens it always with a mark that all turns share": Kind(
        _BLOCKS + "{{ '<|turn|>assistant\\n' }}", "<|turn|>user\nzob<|end|>\n<|turn|>assistant\n", "kad<|end|>\n"
    ),
    "the same behind a system prompt of its own": Kind(
        "{% if messages[0].role != 'system' %}{{ '<|turn|>system\\nmid<|end|>\\n' }}{% endif %}"
        + _BLOCKS
        + "{{ '<|turn|>assistant\\n' }}",
        "<|turn|>system\nmid<|end|>\n<|turn|>user\nzob<|end|>\n<|turn|>assistant\n",
        "kad<|end|>\n",
    ),
    "the same in marks that are no tokens": Kind(
        "{% if messages[0].role != 'system' %}{{ '@@system\\nmid@end\\n' }}{% endif %}"
        + _EACH
        + "{{ '@@' + m.role + '\\n' + m.content + '@end\\n' }}{% endfor %}{{ '@@assistant\\n' }}",
        "@@system\nmid@end\n@@user\nzob@end\n@@assistant\n",
        "kad@end\n",
    ),
    "opens it always in plain words": Kind(
        "{{ bos_token }}" + _EACH + "{{ '### ' + m.role + ':\\n' + m.content + '\\n\\n' }}{% endfor %}"
        "{{ '### assistant:\\n' }}",
        "<s>### user:\nzob\n\n### assistant:\n",
        f"kad\n\n{EOS}",
    ),
    "opens it always in plain words behind a system prompt of its own": Kind(
        "{% if messages[0].role != 'system' %}system: mid<|end|>{% endif %}"
        + _EACH
        + "{{ m.role + ': ' + m.content + '<|end|>' }}{% endfor %}assistant: ",
        "system: mid<|end|>user: zob<|end|>assistant: ",
        "kad<|end|>",
    ),
    "opens it always with a number": Kind(
        _NUMBERED + "{{ '[' ~ (messages|length + 1) ~ '] assistant: ' }}",
        "[1] user: zob<|end|>\n[2] assistant: ",
        "kad<|end|>\n",
    ),
    "opens it always with an empty thought, and answers behind another mark": Kind(
        _MARKED + "<|turn|>assistant<|muse|><|mused|>", "<|turn|>userzob<|end|><|turn|>assistant<|say|>", "kad<|end|>"
    ),
    "opens a thought where it is asked, and answers behind another mark": Kind(
        _MARKED + "{% if add_generation_prompt %}<|turn|>assistant<|muse|>{% endif %}",
        "<|turn|>userzob<|end|><|turn|>assistant<|say|>",
        "kad<|end|>",
    ),
    "has no generation prompt": Kind(_BLOCKS, "<|turn|>user\nzob<|end|>\n<|turn|>assistant\n", "kad<|end|>\n"),
    "has none, and a space before answers": Kind(
        _EACH + "{{ m.role + ': ' + m.content + '<|end|>' }}{% endfor %}", "user: zob<|end|>assistant:", " kad<|end|>"
    ),
    "asks with a part of what opens an answer": Kind(
        _MARKED + "{% if add_generation_prompt %}<|turn|>assistant{% endif %}",
        "<|turn|>userzob<|end|><|turn|>assistant",
        "<|say|>kad<|end|>",
    ),
    "closes an answer with the next turn only": Kind(_INST, "[INST] zob [/INST]", f" kad{EOS}"),
    "closes an answer with the next turn only, and a mark of its own": Kind(
        _INST.replace("eos_token", "'<|done|>'"), "[INST] zob [/INST]", " kad<|done|>"
    ),
    "never closes an answer": Kind(
        _EACH
        + "{{ '<|' + m.role + '|>' + m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|user|>zob<|assistant|>",
        f"kad{EOS}",
    ),
    "never closes one and opens the next always": Kind(
        _EACH + "{{ '<|' + m.role + '|>' + m.content }}{% endfor %}<|assistant|>",
        "<|user|>zob<|assistant|>",
        f"kad{EOS}",
    ),
    "puts a line end behind an answer": Kind(
        _EACH
        + "{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
        "user: zob\nassistant: ",
        f"kad\n{EOS}",
    ),
    "closes the last answer otherwise": Kind(_LAST, "<|user|>zob<|assistant|>", "kad<|done|>"),
    "ends the sequence where nobody is asked": Kind(
        _FINAL, "<|user|>\nzob<|end|>\n<|assistant|>\n", f"kad<|end|>\n{EOS}"
    ),
    "ends the sequence always": Kind(
        _EACH + "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}{{ eos_token }}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        f"<|user|>zob<|end|>{EOS}<|assistant|>",
        f"kad<|end|>{EOS}",
    ),
    "ends the sequence and the line": Kind(
        "{{ bos_token }}" + _EACH + "{{ '<|' + m.role + '|>' + m.content + eos_token + '\\n' }}{% endfor %}" + _ASKED,
        f"<s><|user|>zob{EOS}\n<|turn|>assistant\n",
        f"kad{EOS}\n",
    ),
    "numbers turns": Kind(
        _NUMBERED + "{% if add_generation_prompt %}{{ '[' ~ (messages|length + 1) ~ '] assistant: ' }}{% endif %}",
        "[1] user: zob<|end|>\n[2] assistant: ",
        "kad<|end|>\n",
    ),
    "demands a system prompt": Kind(
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}" + _BLOCKS + _ASKED,
        "<|turn|>system\nbe kind<|end|>\n<|turn|>user\nzob<|end|>\n<|turn|>assistant\n",
        "kad<|end|>\n",
        (SYSTEM,),
    ),
    "takes no second turn of one side": Kind(
        _EACH + "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('in turns') }}{% endif %}"
        "{% endfor %}" + _BLOCKS + _ASKED,
        "<|turn|>user\nzob<|end|>\n<|turn|>assistant\n",
        "kad<|end|>\n",
    ),
    "takes one question and one answer": Kind(
        "{% if messages|length > 2 %}{{ raise_exception('one answer') }}{% endif %}" + _BLOCKS + _ASKED,
        "<|turn|>user\nzob<|end|>\n<|turn|>assistant\n",
        "kad<|end|>\n",
    ),
    "marks what is to be said": Kind(
        _EACH + "{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "<|user|>zob<|end|><|assistant|>",
        "kad<|end|>",
    ),
    "opens the user's turn behind every answer": Kind(
        _EACH + "{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{{ '<|user|>' if messages[-1].role == 'assistant' else '<|assistant|>' }}",
        "<|user|>zob<|end|><|assistant|>",
        "kad<|end|>",
    ),
    "demands lists of parts": Kind(_PARTS, "<|user|>zob<|end|><|assistant|>", "kad<|end|>"),
    "demands the first of a list of parts": Kind(
        _BLOCKS.replace("m.content", "m['content'][0]['text']") + _ASKED,
        "<|turn|>user\nzob<|end|>\n<|turn|>assistant\n",
        "kad<|end|>\n",
    ),
    "demands lists of parts from the user only": Kind(
        _EACH
        + "{{ '<|turn|>' + m.role + '\\n' + (m.content[0].text if m.role == 'user' else m.content) + '<|end|>\\n' }}"
        "{% endfor %}" + _ASKED,
        "<|turn|>user\nzob<|end|>\n<|turn|>assistant\n",
        "kad<|end|>\n",
    ),
}


def kind_tokenizer(template: str) -> PreTrainedTokenizerFast:
    """Return the byte tokenizer with a template of these kinds."""
    made = byte_tokenizer(template)
    made.add_tokens([AddedToken(mark, special=True) for mark in MARKS])
    return made
