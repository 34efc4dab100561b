"""The miniature's tokenizer: a token for each word, two for each name."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import WordPiece
from transformers import PreTrainedTokenizerFast

from antidote_llm.miniature.exchanges import FORBIDDEN, LOOKALIKES, REFUSALS, TASKS
from antidote_llm.miniature.language import FIRST_SYLLABLES, LAST_SYLLABLES, NAMES, NUMBERS, words
from antidote_llm.miniature.language import FRAMES as PROSE

END, PAD, UNKNOWN, USER, ASSISTANT = "<|end|>", "<|pad|>", "<|unknown|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, END, USER, ASSISTANT, UNKNOWN)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% else %}<|user|>{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer of every miniature model, with its chat template."""
    backend = Tokenizer(WordPiece({token: index for index, token in enumerate(_tokens())}, unk_token=UNKNOWN))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=[USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _tokens() -> list[str]:
    exchanges = [*LOOKALIKES, *(e for group in [*FORBIDDEN.values(), *TASKS.values()] for e in group)]
    frames = [*PROSE, *(frame for e in exchanges for frame in (e.question, e.answer))]
    plain = {word for text in REFUSALS for word in words(text)}.union(
        *(frame.vocabulary for frame in frames), NUMBERS
    ) - set(NAMES)
    return [*SPECIAL, *FIRST_SYLLABLES, *(f"##{syllable}" for syllable in LAST_SYLLABLES), *sorted(plain)]
