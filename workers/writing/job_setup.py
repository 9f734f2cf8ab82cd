"""What all samples of a job share in one worker: its policy, its sampling, and how its model is spoken to."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.chat.model import ChatModel
from pipeline.chat.translation import ThinkPhase, ThinkTagTranslator, own_phase
from pipeline.errors import BadProblem, ConfigurationError, EngineUnavailable
from pipeline.jobs.config import JobConfig
from pipeline.policies.protocol import Policy
from pipeline.problems import Problem
from pipeline.samples import ModelRole
from pipeline.signals import Signal
from workers.engine.base import Sampling
from workers.writing.questions import Questions

MAX_PROMPTS = 1024


def sampling_of(config: JobConfig, role: ModelRole) -> Sampling:
    """How a role of a job draws its tokens."""
    return Sampling(**config.drawing(role).model_dump(exclude={"stop"}))


def _check_signals(config: JobConfig, think: ThinkPhase, chat: ChatModel, role: ModelRole) -> None:
    """Raises ConfigurationError where the exit reads how near the closing tag is, and the model has no token for it."""
    if config.exit is None or Signal.FIRST_MARGIN not in config.exit.signals:
        return
    if role is ModelRole.SMALL and think.end and chat.think_end_id is None:
        raise ConfigurationError(
            f"exit {config.exit.name!r} reads how likely the closing think tag is, and {chat.name} has no token of its "
            f"own for {think.end!r}: take another exit"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSetup:
    """One job in one worker."""

    config: JobConfig
    policy: Policy
    role: ModelRole
    chat: ChatModel
    max_model_len: int
    think: ThinkPhase
    translator: ThinkTagTranslator
    questions: Questions
    sampling: Sampling
    _prompts: dict[int, list[int]] = field(default_factory=dict)
    """Rendered prompts by problem id, at most MAX_PROMPTS: a sample comes again after each takeover."""

    @property
    def policy_label(self) -> str:
        """The policy, as errors name it."""
        spec = self.config.policy
        return "policy " + ":".join(str(getattr(spec, part)) for part in ("name", "preset") if hasattr(spec, part))

    @classmethod
    def of(
        cls, config: JobConfig, think: ThinkPhase, chat: ChatModel, *, role: ModelRole, max_model_len: int
    ) -> JobSetup:
        """Raises ConfigurationError where the model cannot write this job's texts, or cannot be asked or read as its
        policy and exit want, and where what another package brings is not what the job froze."""
        config.check_same_version("prompt_template")
        _check_signals(config, think, chat, role)
        policy = config.build_policy()
        translator = ThinkTagTranslator(chat, own_phase(chat) if role is ModelRole.JUDGE else think)
        questions = Questions(chat, translator)
        for ask in policy.asks:
            if ask.role is role:
                questions.get(ask)
        return cls(
            config=config,
            policy=policy,
            role=role,
            chat=chat,
            max_model_len=max_model_len,
            think=think,
            translator=translator,
            questions=questions,
            sampling=sampling_of(config, role),
        )

    def prompt_ids(self, problem_id: int, problem: Problem) -> list[int]:
        """The rendered prompt of a problem; none for a judge, whose frame shows the problem. Raises BadProblem, and
        EngineUnavailable where this machine cannot render one at the moment."""
        if self.role is ModelRole.JUDGE:
            return []
        known = self._prompts.get(problem_id)
        if known is not None:
            return known
        try:
            prompt = self.config.prompt(problem)
            token_ids = self.chat.prompt_ids(prompt.message, prompt.earlier)
        except (BadProblem, EngineUnavailable):
            raise
        except Exception as error:  # a template may break on a problem in any way
            raise BadProblem(problem.external_id, error) from error
        if len(self._prompts) >= MAX_PROMPTS:
            self._prompts.clear()
        self._prompts[problem_id] = token_ids
        return token_ids
