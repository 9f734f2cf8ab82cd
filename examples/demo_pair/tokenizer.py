"""The pair's tokenizer: byte-level BPE trained on the traces, so that any text can be encoded and decoded.

As in real vocabularies a paragraph break merges with the punctuation before it (".\\n\\n" is one token). Digits stay
single, with the space before them if there is one.
"""

from __future__ import annotations

import random

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .problems import Split, draw_problem
from .traces import INSTRUCTION, SMALL_STYLE, write_trace

PAD = "<|endoftext|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SYSTEM = "<|system|>"
VOCABULARY_SIZE = 768  # an upper bound: merging stops earlier, when every word of the corpus is one token

# Qwen2's pattern, but a digit takes the space before it.
PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on traces of training problems."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[PAD, END, SYSTEM, USER, ASSISTANT],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(seed), trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def _corpus(seed: int) -> list[str]:
    rng = random.Random(seed)
    corpus = []
    for _ in range(3000):
        problem = draw_problem(rng, Split.TRAIN)
        trace = write_trace(problem, SMALL_STYLE, rng)
        # The tags are tokens of their own: their letters should not shape the merges.
        corpus.append(f"{problem.text}\n\n{INSTRUCTION}")
        corpus.extend(trace.text.split("</think>"))
    return corpus


def render_prompt(tokenizer: PreTrainedTokenizerFast, problem_text: str) -> str:
    """The prompt as the pipeline renders it, up to the opening think tag."""
    messages = [{"role": "user", "content": f"{problem_text}\n\n{INSTRUCTION}"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    return prompt
