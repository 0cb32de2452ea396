"""Which text a run reads and how it becomes tokens."""

from dataclasses import dataclass, field

from ....errors import InputError
from ....runs.sections import NEWER
from ..augment import TextAugment


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The text, the tokenizer and the split of one run.

    Args:
        source: ``stdlib-docs``, ``stdlib-code``, a text file, a folder of ``.txt`` and ``.md`` files, or
            ``dataset:NAME_OR_FOLDER`` (``dataset:NAME:CONFIGURATION`` where the dataset has several).
        tokenizer: ``bytes``, ``chars``, ``bpe:N``, ``gpt2``, ``gpt2:FOLDER``, or ``gpt2-or-bpe``: GPT-2's
            where its files are on this machine, else as many ids of an encoding of the training split.
        text_field: the column that holds the text, for a ``dataset:`` source.
        train_tokens: use only the first so many training tokens; None uses all. The tokenizer is trained
            on the whole training split either way, so runs of different sizes share their tokens.
        validation_tokens: the same for the validation tokens.
        test_tokens: how many tokens behind the validation tokens in use make the test split; None for none.
        augment: random changes of the training windows; None for none.
        validation_fraction: the share of the documents (of the text, when there is one document) held out.

    Raises:
        InputError: for a fraction outside (0, 1) or a token limit below 1.
    """

    source: str = "stdlib-docs"
    tokenizer: str = "bytes"
    text_field: str = "text"
    train_tokens: int | None = None
    validation_tokens: int | None = None
    validation_fraction: float = 0.1
    test_tokens: int | None = field(default=None, metadata=NEWER)
    augment: TextAugment | None = field(default=None, metadata=NEWER)

    def __post_init__(self) -> None:
        if not 0.0 < self.validation_fraction < 1.0:
            raise InputError(
                f"data.validation_fraction is {self.validation_fraction} but must lie between 0 and 1: "
                "use --set data.validation_fraction=0.1"
            )
        for name in ("train_tokens", "validation_tokens", "test_tokens"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise InputError(
                    f"data.{name} is {limit} but must be 1 or more: --set data.{name}=null uses all"
                )
