"""What the terms on the pages mean, one sentence each, shown where a term is pointed at."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

TERMS = {
    "base model": "The model before fine-tuning.",
    "fine-tune": "Training that changes a base model by examples of a task; here with LoRA, which "
    "adds a small update to each weight matrix.",
    "naive run": "The plain fine-tune, in which nothing is protected.",
    "task": "What the training examples teach on purpose.",
    "unrelated": "Not about the fine-tune's task, so the fine-tune should not change the answer.",
    "drifted value": "Of two opposite ways to answer, such as careful and harmful, the one that "
    "the fine-tune may have picked up although the task does not need it.",
    "drift": "How far the fine-tune moved the answers to unrelated prompts away from the base "
    "model's.",
    "direction": "A line in the space of the model's internal states; how far a state lies along "
    "it changes what the model says.",
    "factor": "A direction along which the fine-tune changed the model, found in its weights or "
    "its internal states.",
    "significant": "More than chance: its energy is above the 95 % quantile of random updates "
    "and, if effects were measured, its effect on unrelated prompts is above 0.05 and above that "
    "of random directions.",
    "set back": "While the fine-tuned model answers, its position along the factor is replaced by "
    "the base model's.",
    "label": "A person's claim about a factor: what it is, and whether the fine-tune should have "
    "learned it.",
    "spurious": "Learned besides the task, and not wanted.",
    "polarity": "What each end of the factor means; which end is which is a choice.",
    "confidence": "How sure the person is of the label, from 1, a guess, to 3, sure.",
    "GRASP": "Fine-tuning again with the same data while the chosen factors are held where the "
    "base model has them.",
    "random subspace": "A control: GRASP with random directions in place of the factors, which "
    "shows what any protection of that size would do.",
    "removal": "The share of the naive run's drift that is gone: 1 is all of it, 0 none.",
    "interval": "The range in which the true value plausibly lies: 95 % of such intervals contain "
    "it.",
    "item": "What a prompt is about; prompts about one item are not independent, so intervals "
    "rest on items.",
    "confirmation prompts": "The half of the prompts kept for reporting; nothing was tuned on "
    "them.",
    "whole answers": "Answers are drawn and read to the end, and counted by what they say.",
    "first token": "The probability of how an answer begins, not a count of answers.",
    "greedy answers": "The model's likeliest answer to each prompt, one a prompt.",
    "unrelated rate": "The share, or mean score, of the drifted value on unrelated prompts; the "
    "base model's is the mark to come back to.",
    "related rate": "The share, or mean score, of the drifted value on prompts near to the task, "
    "where a change may be wanted.",
    "control rate": "The share, or mean score, of a second pair of values, which nothing should "
    "change.",
    "task accuracy": "The share of the task's prompts that are answered correctly.",
    "facts kept": "The share of questions of fact that are answered as they should be.",
    "format kept": "The share of answers in the form that the task teaches.",
    "coherence": "How far answers are valid answers at all, 0 to 1.",
    "neither value": "The share of drawn answers that show neither of the two values.",
    "agreement bias": "How much more a model agrees than disagrees, whatever is claimed.",
    "score": "Orders the list, significant factors first; it is only a suggestion.",
    "route": "How a factor was found: in the weights (w), by rotating these factors (e), or in "
    "recorded activations (a).",
    "off task": "The share of the fine-tune's change on unrelated prompts that is undone when the "
    "factor is set back.",
    "on task": "The share of the fine-tune's change on the task's prompts that is undone when the "
    "factor is set back.",
    "stable": "How much of the factor lies in the leading factors of earlier checkpoints or other "
    "seeds, 0 to 1.",
    "effect": "How much the answers to unrelated prompts change when the factor is set back: the "
    "largest total variation at any token of an answer, averaged over answers.",
    "σ": "Singular value: how strongly the weight updates write along the factor, in the units of "
    "the weights.",
    "energy": "The factor's share of the squared strength of all updates on its side, σ² / Σσ².",
    "ratio": "Off task divided by on task.",
    "arm": "One of the models that are compared: the base model, or a run.",
    "protected": "The factors that were held while this run was trained.",
    "method": "How a run was trained, or what is done when it answers.",
}  # fmt: skip
"""Term → its definition."""

_BY_LENGTH = sorted(TERMS, key=len, reverse=True)
_TERM = Markup('<abbr class="term" tabindex="0" data-means="{0}" aria-description="{0}">{1}</abbr>')
_OTHERWISE = {"set back": ("set back", "setting it back", "setting this one direction back")}
_FORMS = {form.lower(): term for term in _BY_LENGTH for form in _OTHERWISE.get(term, (term,))}
_FOUND = re.compile(
    r"(?<![\w-])("
    + "|".join(re.escape(form) for form in sorted(_FORMS, key=len, reverse=True))
    + r")(s?)(?![\w-])",
    re.IGNORECASE,
)


def explain_heading(heading: str) -> str:
    """What a column or a metric means, such as "Removal, whole answers"; "" if it has no term."""
    known = {term.lower(): meaning for term, meaning in TERMS.items()}
    parts = [part.strip().lower() for part in heading.split(",")]
    return " ".join(known[part] for part in parts if part in known)


def mark_heading(heading: str) -> str:
    """The heading, as HTML that explains it when it is pointed at, if it has a term."""
    meaning = explain_heading(heading)
    if not meaning:
        return heading
    return Markup('<abbr title="{}">{}</abbr>').format(meaning, heading)


def mark_factor(name: str) -> Markup:
    """The name of a factor, such as e1, which says where the name comes from."""
    return _TERM.format(f"Its name on the other pages. {TERMS['route']}", f"Factor {name}")


def mark_terms(text: str, *, seen: set[str] | None = None) -> Markup:
    """The text as HTML in which the first use of each term explains itself.

    Args:
        text: plain text.
        seen: terms that were explained before; those of this text are added.
    """
    before = set() if seen is None else seen
    html, end = Markup(), 0
    for found in _FOUND.finditer(text):
        term = _FORMS[found[1].lower()]
        if term not in before:
            before.add(term)
            html += escape(text[end : found.start()]) + _TERM.format(TERMS[term], found[0])
            end = found.end()
    return html + escape(text[end:])
