"""`duolog topic create|list|describe|delete`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from duolog import Admin, NewTopic
from duolog_protocol.errors import ConfigError

from .common import add_bootstrap, parser, run_async, table


def run(words: Sequence[str]) -> int:
    """Do what the words say."""
    options = _parser().parse_args(words)
    run_async(options.action(options))
    return 0


def _parser() -> argparse.ArgumentParser:
    found = parser("topic", "Look after topics.")
    verbs = found.add_subparsers(required=True, metavar="create|list|describe|delete")
    create = verbs.add_parser("create", help="create topics")
    create.add_argument("names", nargs="+", metavar="TOPIC")
    create.add_argument("-p", "--partitions", type=int, default=-1, help="default: the broker's")
    create.add_argument(
        "-c",
        "--config",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a topic setting, e.g. durability=replicated or retention.ms=60000; repeatable",
    )
    create.set_defaults(action=_create)
    listing = verbs.add_parser("list", help="list topics")
    listing.set_defaults(action=_list)
    describe = verbs.add_parser("describe", help="show partitions and settings")
    describe.add_argument("names", nargs="+", metavar="TOPIC")
    describe.set_defaults(action=_describe)
    delete = verbs.add_parser("delete", help="delete topics and their records")
    delete.add_argument("names", nargs="+", metavar="TOPIC")
    delete.set_defaults(action=_delete)
    for each in (create, listing, describe, delete):
        add_bootstrap(each)
    for each in (listing, describe):
        each.add_argument("--json", action="store_true", help="print JSON")
    return found


async def _create(options: argparse.Namespace) -> None:
    configs: dict[str, str] = {}
    for setting in options.config:
        name, equals, value = setting.partition("=")
        if not equals:
            raise ConfigError("--config", setting, "must be NAME=VALUE")
        configs[name] = value
    async with Admin(bootstrap_servers=options.bootstrap_servers) as admin:
        topics = [
            NewTopic(name, num_partitions=options.partitions, topic_configs=configs)
            for name in options.names
        ]
        await admin.create_topics(topics)
    for name in options.names:
        print(f"created {name}")


async def _list(options: argparse.Namespace) -> None:
    async with Admin(bootstrap_servers=options.bootstrap_servers) as admin:
        names = sorted(await admin.list_topics())
    print(json.dumps(names) if options.json else "\n".join(names))


async def _describe(options: argparse.Namespace) -> None:
    async with Admin(bootstrap_servers=options.bootstrap_servers) as admin:
        topics = await admin.describe_topics(options.names)
        configs = await admin.describe_configs(options.names)
    if options.json:
        print(
            json.dumps(
                [
                    {
                        "name": topic.name,
                        "topic_id": topic.topic_id,
                        "partitions": [partition._asdict() for partition in topic.partitions],
                        "configs": {name: each.value for name, each in configs[topic.name].items()},
                    }
                    for topic in topics
                ]
            )
        )
        return
    for topic in topics:
        print(f"topic {topic.name}  id {topic.topic_id}")
        rows = [
            (
                partition.partition,
                partition.leader_id,
                partition.leader_epoch,
                ",".join(map(str, partition.replicas)),
                ",".join(map(str, partition.isr)),
            )
            for partition in topic.partitions
        ]
        print(table(["partition", "leader", "epoch", "replicas", "isr"], rows))
        own = [f"{n}={c.value}" for n, c in configs[topic.name].items() if not c.is_default]
        print("settings: " + (", ".join(own) or "all default"))


async def _delete(options: argparse.Namespace) -> None:
    async with Admin(bootstrap_servers=options.bootstrap_servers) as admin:
        await admin.delete_topics(options.names)
    for name in options.names:
        print(f"deleted {name}")
