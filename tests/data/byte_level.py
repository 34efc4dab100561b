"""A tokenizer of single bytes and one merge, and chat templates in the style of those of known models."""

from __future__ import annotations

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"

_THOUGHT_SPLIT = (
    "{%- set content = m['content'] %}{%- set thought = '' %}{%- if '</think>' in content %}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{%- endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN3 = (
    "{%- for m in messages %}{%- if m['role'] == 'assistant' %}" + _THOUGHT_SPLIT + "{%- if loop.last %}"
    "{{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>assistant\\n' + content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- else %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}"
    "{%- endif %}"
)
DEEPSEEK_R1 = (
    "{% set ns = namespace(system='') %}{%- for m in messages %}{%- if m['role'] == 'system' %}"
    "{% set ns.system = m['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}{%- endif %}"
    "{%- if m['role'] == 'assistant' %}" + _THOUGHT_SPLIT + "{{ '<|Assistant|>' + content + eos_token }}{%- endif %}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] | trim %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' }}"
    "{{- 'Today Date: ' + strftime_now('%d %b %Y') + '\\n\\n' + system + '<|eot_id|>' }}"
    "{%- for m in messages %}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- m['content'] | trim + '<|eot_id|>' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + m['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
MISTRAL = (
    "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] + '\\n\\n' %}"
    "{%- set messages = messages[1:] %}{%- else %}{%- set system = '' %}{%- endif %}{{- bos_token }}"
    "{%- for m in messages %}{%- if m['role'] == 'user' %}"
    "{{- '[INST] ' + (system if loop.first else '') + m['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' ' + m['content'] + eos_token }}{%- endif %}{%- endfor %}"
)
TEMPLATES = {
    "chatml": CHATML,
    "qwen3": QWEN3,
    "deepseek-r1": DEEPSEEK_R1,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
}
_MARKS = (
    *("<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]"),
)


def byte_tokenizer(template: str | None = None, *, closes: bool = False) -> PreTrainedTokenizerFast:
    """Return a tokenizer of single bytes and one merge, which begins texts with BOS and may close them with EOS."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, *alphabet, "ab"])}
    inner = Tokenizer(models.BPE(vocabulary, [("a", "b")]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    single = f"{BOS} $A {EOS}" if closes else f"{BOS} $A"
    inner.post_processor = processors.TemplateProcessing(single=single, special_tokens=[(BOS, 0), (EOS, 1)])
    made = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=EOS)
    made.chat_template = template
    return made


def spacing_tokenizer(spaced: str) -> PreTrainedTokenizerFast:
    """Return a tokenizer of letters that puts a space before texts, and has one token for a colon and a k.

    Args:
        spaced: ``always`` or ``first`` as newer files say it, ``normalised`` as those of the first llamas do.
    """
    vocabulary = {token: index for index, token in enumerate([BOS, EOS, "<unk>", *"\u2581abdk:\n", ":k"])}
    inner = Tokenizer(models.BPE(vocabulary, [(":", "k")], unk_token="<unk>"))
    if spaced == "normalised":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        strip = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(strip)
    else:
        scheme = "always" if spaced == "always" else "first"
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
        inner.decoder = decoders.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=BOS, eos_token=EOS, unk_token="<unk>")


def chat_tokenizer(name: str, *, special_thoughts: bool = False) -> PreTrainedTokenizerFast:
    """Return the byte tokenizer with one of the templates, whose marks are single tokens."""
    made = byte_tokenizer(TEMPLATES[name])
    made.add_tokens([AddedToken(mark, special=True) for mark in _MARKS])
    made.add_tokens([AddedToken(mark, special=special_thoughts) for mark in ("<think>", "</think>")])
    return made
