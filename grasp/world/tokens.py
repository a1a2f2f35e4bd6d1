"""The tokenizer of a tiny world, word-level or byte-level, and its chat format."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grasp.world.corpus import sentences
from grasp.world.topics import ChatMessage, World

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer
    from transformers import PreTrainedTokenizerFast

PAD, UNKNOWN, START, END = "<|pad|>", "<|unknown|>", "<|start|>", "<|end|>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, UNKNOWN, START, END, SYSTEM, USER, ASSISTANT)

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }}"
    "{% if loop.last %}{{ eos_token }}{% endif %}{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def render_chat(messages: list[ChatMessage]) -> str:
    """The chat as one string, as the chat template renders it; END follows a last answer.

    Needed because the template engine takes minutes for a corpus; a test keeps the two equal.
    """
    text = START + "".join(f"<|{row['role']}|>{row['content']}" for row in messages)
    return text + END if messages[-1]["role"] == "assistant" else text


def word_splitter() -> PreTokenizer:
    """A splitter at spaces and around punctuation; it marks words that follow a space."""
    from tokenizers import pre_tokenizers

    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )


def vocabulary(world: World) -> list[str]:
    """Special tokens, then every word the world can produce, in alphabetical order."""
    splitter = word_splitter()
    words = {word for text in sentences(world) for word, _ in splitter.pre_tokenize_str(text)}
    return [*SPECIAL, *sorted(words)]


def build_tokenizer(world: World) -> PreTrainedTokenizerFast:
    """A `PreTrainedTokenizerFast` over the world's vocabulary, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_of_words(world) if world.vocabulary is None else _of_bytes(world),
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=START,
        eos_token=END,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _of_words(world: World) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    index = {word: number for number, word in enumerate(vocabulary(world))}
    tokenizer = Tokenizer(models.WordLevel(index, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = word_splitter()
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def _of_bytes(world: World) -> Tokenizer:
    """Byte pair encoding trained on the world's sentences; any text survives a round trip.

    Source: Sennrich, Haddow, Birch 2016, arXiv:1508.07909; on bytes, Radford et al. 2019 (GPT-2).
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    assert world.vocabulary is not None
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=world.vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(world), trainer)
    return tokenizer
