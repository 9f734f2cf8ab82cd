"""The pair's tokenizer: byte-level BPE trained on the traces, so that any text can be encoded and decoded.

As in real vocabularies a paragraph break merges with the punctuation before it (".\\n\\n" is one token). Digits stay
single. The rules that split text into words are Qwen2's: transformers applies them to every model of that type.
"""

from __future__ import annotations

import json
import random

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer

from .problems import Split, draw_problem
from .traces import CORPUS_STYLE, INSTRUCTION, write_trace

PAD = "<|endoftext|>"
USER = "<|user|>"
ASSISTANT = "<|assistant|>"
END = "<|end|>"
SYSTEM = "<|system|>"
SPECIAL_TOKENS = [PAD, END, SYSTEM, USER, ASSISTANT]
VOCABULARY_SIZE = 768  # an upper bound: merging stops earlier, when every word of the corpus is one token

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|><think>\n' }}{% endif %}"
)


def train_tokenizer(seed: int) -> Qwen2Tokenizer:
    """Train the tokenizer on traces of training problems."""
    bare = Tokenizer(models.BPE())
    rules = Qwen2Tokenizer().backend_tokenizer
    bare.normalizer, bare.pre_tokenizer, bare.decoder = (
        rules.normalizer,
        rules.pre_tokenizer,
        rules.decoder,
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        min_frequency=2,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=SPECIAL_TOKENS,
        show_progress=False,
    )
    bare.train_from_iterator(_corpus(seed), trainer)
    learned = json.loads(bare.to_str())["model"]
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=[tuple(merge) for merge in learned["merges"]],  # annotated as lines of a file
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=SPECIAL_TOKENS,
        chat_template=CHAT_TEMPLATE,
        model_max_length=2048,
    )
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in ("<think>", "</think>")])
    return tokenizer


def _corpus(seed: int) -> list[str]:
    rng = random.Random(seed)
    corpus = []
    for _ in range(3000):
        problem = draw_problem(rng, Split.TRAIN)
        trace = write_trace(problem, CORPUS_STYLE, rng)
        # The tags are tokens of their own: their letters should not shape the merges.
        corpus.append(f"{problem.text}\n\n{INSTRUCTION}")
        corpus.extend(trace.text.split("</think>"))
    return corpus


def render_prompt(tokenizer: Qwen2Tokenizer, problem_text: str) -> str:
    """The prompt as the pipeline renders it, up to the opening think tag."""
    messages = [{"role": "user", "content": f"{problem_text}\n\n{INSTRUCTION}"}]
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert isinstance(prompt, str)
    return prompt
