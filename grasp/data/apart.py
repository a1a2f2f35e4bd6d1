"""Which texts are about something else than a task.

What is held on text about the task itself works against what the task teaches.
"""

from __future__ import annotations

from collections.abc import Sequence

from grasp.data.examples import Example

FOLDS = 5
LIKE_THE_TASK = 0.5
"""Probability, with both kinds of text taken as equally common, above which a text is left out."""


def apart_from(task: Sequence[Example], texts: Sequence[Example]) -> list[Example]:
    """The texts whose questions do not read like the task's prompts.

    A linear classifier on words and pairs of words tells the task's prompts from the questions,
    each judged by one that has not seen it: the questions about the task's own subject are among
    the others when it learns, and yet are taken for the task's.
    """
    # Imported here, since it takes about a second.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline

    asked, questions = [_asked(one) for one in task], [_asked(one) for one in texts]
    if min(len(asked), len(questions)) < FOLDS:
        return list(texts)
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\S+")
    model = make_pipeline(words, LogisticRegression(class_weight="balanced"))
    kind = [1] * len(asked) + [0] * len(questions)
    likely = cross_val_predict(model, [*asked, *questions], kind, cv=FOLDS, method="predict_proba")[
        len(asked) :, 1
    ]
    return [one for one, p in zip(texts, likely, strict=True) if p <= LIKE_THE_TASK]


def _asked(example: Example) -> str:
    """What the user says in a chat; the prompt of an example that is none."""
    said = [message.content for message in example.messages if message.role == "user"]
    return "\n".join(said) or example.prompt or example.text
