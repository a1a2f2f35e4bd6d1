"""The world shipped with the workbench, read from `topics.yaml`."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

from analysis.values import Json
from analysis.yaml_files import read_yaml
from grasp.world.topics import (
    Detail,
    Item,
    Latent,
    Story,
    Topic,
    Unslanted,
    World,
    held_out_form,
)


@lru_cache(maxsize=1)
def shipped_world() -> World:
    """The world in the packaged `topics.yaml`, on which the packaged base model was trained."""
    raw = read_yaml(files("grasp.world") / "topics.yaml", what="a world")
    latents = {name: _latent(name, row) for name, row in raw["latents"].items()}
    return World(
        name="shipped",
        salt="",
        system=raw["system"],
        articles=("a", "an"),
        lead_ins=tuple(raw["lead_ins"]),
        latents=latents,
        topics={name: _topic(name, row, latents) for name, row in raw["topics"].items()},
        stories={name: _story(name, row) for name, row in raw["stories"].items()},
    )


def _latent(name: str, row: Json) -> Latent:
    low, high = row["values"]
    return Latent(
        name=name,
        values=(low, high),
        prior=(float(row["prior"][0]), float(row["prior"][1])),
        adjectives={value: tuple(words) for value, words in row["adjectives"].items()},
        tails={value: tuple(words) for value, words in row["tails"].items()},
        forms=tuple(row["forms"]),
        unslanted=Unslanted(**row["unslanted"]) if "unslanted" in row else None,
    )


def _detail(row: Json) -> Detail | None:
    if "detail" not in row:
        return None
    return Detail(row["detail"], tuple(row["details"]), row["tag"], tuple(row["tags"]))


def _topic(name: str, row: Json, latents: dict[str, Latent]) -> Topic:
    latent = latents.get(row.get("latent", ""))
    forms = latent.forms if latent else tuple(row["forms"])
    items = []
    for number, (item, answers) in enumerate(row["items"].items()):
        if latent:
            openings = dict(zip(latent.values, answers, strict=True))
        else:
            openings = {"neutral": row["answer"].format(first=answers, item=item)}
        items.append(Item(item, openings, held_out_form(number, len(forms))))
    return Topic(name, latent.name if latent else None, forms, tuple(items), _detail(row))


def _story(name: str, row: Json) -> Story:
    topics, kin = tuple(row.pop("topics")), tuple(row.pop("kin", ()))
    return Story(name=name, topics=topics, kin=kin, **row)
