"""The cue lists that have a name, as data: the paper's, a wider one for English, and one for each of other languages.

A job chooses one by ``policy.cues=ja``, or several by ``policy.cues=en+ja``, and stores the words. en+zh is the default
of ``improved``; ``paper`` and ``code`` have en.

en: appendix of arXiv 2504.12329, the same in every configuration of its released code.

wide: en and the words that R1-Distill-Qwen-14B and -Llama-8B use besides where they are in doubt. Measured on the
labelled sentences of 40 published traces (interp-reasoning/thought-anchors.com; labels by a language model): en finds
54 % of the 670 sentences labelled uncertain, wide 69 %, and 45 % and 48 % of the sentences that each finds are
labelled so. A word was taken where at least half of the sentences that it adds are, besides a few rare ones.

The other languages: what the paper's words become where a model thinks in them. The word for "wait" of de, es, fr, ja
and zh is that of the recipe "reasoning-language" of NVIDIA-NeMo/Skills; the rest is our translation, not measured.
Where negation comes after the word (Japanese, Korean), forms are chosen that it changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

Lists = Mapping[str, tuple[str, ...]]

_EN: Lists = {
    "verify": ("verify", "think again", "recap", "check"),
    "negative": ("wait", "alternatively", "hold on", "another"),
    "positive": ("yeah", "yes", "final answer", "confident"),
}
_WIDE: Lists = {
    "verify": (*_EN["verify"], "recalculate", "reconsider", "re-examine"),
    "negative": (
        *_EN["negative"],
        *("hmm", "not sure", "unsure", "mistake", "correct?", "is that right", "conflicting", "contradiction"),
        *("doesn't make sense", "does not make sense", "doesn't seem", "doesn't match", "not matching"),
        *("confused", "confusing", "oops"),
    ),
    "positive": _EN["positive"],
}
_ZH: Lists = {
    "verify": (
        *("验证", "检查", "检验", "核对", "再想想", "再想一想", "重新思考", "重新考虑", "回顾一下"),
        *("驗證", "檢查", "檢驗", "核對"),
    ),
    "negative": (
        *("等等", "等一下", "等一等", "且慢", "不对", "或者说", "另一种", "换一种", "换个"),
        *("不對", "另一種", "換一種"),
    ),
    "positive": (
        *("没错", "是的，", "是的。", "对的，", "最终答案", "确信", "有把握"),
        *("沒錯", "最終答案", "確信"),
    ),
}
_JA: Lists = {
    "verify": ("確認", "検証", "検算", "確かめ", "見直", "もう一度考え", "考え直", "振り返"),
    "negative": (
        "待って",
        "待てよ",
        "ちょっと待",
        "いや、",
        "あるいは",
        "別の方法",
        "別の考え",
        "他の方法",
        "おかしい",
    ),
    "positive": ("はい、", "そうだ、", "その通り", "最終的な答え", "最終回答", "確信して", "間違いない"),
}
_KO: Lists = {
    "verify": ("확인", "검증", "검산", "검토", "점검", "다시 생각", "되짚어"),
    "negative": ("잠깐", "잠시만", "기다려", "아니면", "다른 방법", "또 다른", "이상하"),
    "positive": ("맞아", "맞습니다", "그렇습니다", "최종 답", "확신합니다", "확실합니다"),
}
_DE: Lists = {
    "verify": ("überprüfen", "überprüfe", "prüfen", "prüfe", "kontrollieren", "nachrechnen", "noch einmal", "nochmal"),
    "negative": ("warte", "moment", "moment mal", "alternativ", "halt", "eine andere", "ein anderer", "anders gesagt"),
    "positive": ("ja", "genau", "endgültige antwort", "endgültige lösung", "bin sicher", "bin mir sicher"),
}
_ES: Lists = {
    "verify": ("verificar", "verifiquemos", "comprobar", "comprobemos", "revisar", "revisemos", "pensemos de nuevo"),
    "negative": ("espera", "espere", "un momento", "alternativamente", "otra manera", "otra forma", "otro enfoque"),
    "positive": ("sí", "exacto", "respuesta final", "estoy seguro", "seguro de"),
}
_FR: Lists = {
    "verify": ("vérifier", "vérifions", "vérifie", "revérifier", "récapitulons", "réfléchissons encore"),
    "negative": ("attendez", "attends", "un instant", "alternativement", "une autre", "un autre"),
    "positive": ("oui", "ouais", "exact", "réponse finale", "confiant", "certain de"),
}

NAMED_LISTS: Mapping[str, Lists] = MappingProxyType(
    {"en": _EN, "wide": _WIDE, "zh": _ZH, "ja": _JA, "ko": _KO, "de": _DE, "es": _ES, "fr": _FR}
)

ANSWER_CUES = frozenset(
    {
        *("final answer", "endgültige antwort", "endgültige lösung", "respuesta final", "réponse finale"),
        *("最终答案", "最終答案", "最終的な答え", "最終回答", "최종 답"),
    }
)
"""Cues that may do no more than state the answer: at the beginning of a sentence they call nobody in."""


def named_lists(names: str) -> dict[str, tuple[str, ...]]:
    """The lists of ``NAME`` or ``NAME+NAME``, joined. Raises ValueError that names those there are."""
    parts = [name.strip() for name in names.split("+")]
    unknown = [name for name in parts if name not in NAMED_LISTS]
    if unknown:
        raise ValueError(f"there are no cues {unknown[0]!r}; there are: {', '.join(NAMED_LISTS)}; join some by +")
    return {kind: _joined([NAMED_LISTS[name][kind] for name in parts]) for kind in _EN}


def _joined(lists: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(words for cues in lists for words in cues))
