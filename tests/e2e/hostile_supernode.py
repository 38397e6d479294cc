"""A SuperNode that lies: it has a registered key, speaks Flower's own protocol, and answers what the tests say.

    python -m tests.e2e.hostile_supernode CA KEY SUPERLINK HONEST

It runs the app for nothing: what it was asked it reads, what it says it makes up. `HONEST` is a JSON object: what it
tells the roll-call where it does not lie there. What it was asked and what it answered goes to its standard output, a
JSON object a line.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization.ssh import load_ssh_private_key
from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, iterate_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, pull_objects
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response


@dataclass
class Sent:
    """A reply as it goes on the wire: the objects may be others than their tree announces.

    Attributes:
        message: what the SuperLink is told of it.
        tree: of its objects.
        objects: id -> content.
        withheld: ids that are announced and never sent.
    """

    message: Message
    tree: ObjectTree
    objects: dict[str, bytes]
    withheld: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, message: Message) -> Sent:
        """Returns a message as an honest node sends it."""
        message.metadata.__dict__["_message_id"] = message.object_id
        objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        return cls(message, get_object_tree(message), objects)

    def replaced(self, change: Callable[[bytes], bytes], kind: bytes) -> Sent:
        """Returns it with the content of its objects of one kind changed, and the hashes of what they are then.

        Args:
            change: of a content.
            kind: first word of the contents that change, such as b"ArrayRecord".
        """
        renamed: dict[str, str] = {}
        contents: dict[str, bytes] = {}

        def rebuilt(tree: ObjectTree) -> ObjectTree:
            children = [rebuilt(child) for child in tree.children]
            content = self.objects[tree.object_id]
            for old, new in renamed.items():
                content = content.replace(old.encode(), new.encode())
            if content.split(b" ", 1)[0] == kind:
                content = change(content)
            name = hashlib.sha256(content).hexdigest()
            renamed[tree.object_id] = name
            contents[name] = content
            return ObjectTree(object_id=name, children=children)

        tree = rebuilt(self.tree)
        self.message.metadata.__dict__["_message_id"] = tree.object_id
        return Sent(self.message, tree, contents)


class Connection:
    """The SuperLink, as this node reaches it.

    Args:
        calls: what Flower's own SuperNode uses.
    """

    def __init__(self, calls: tuple[Any, ...]) -> None:
        self.node_id, self._receive, self._send, _, _, self._pull, self._push, self._confirm = calls

    def asked(self) -> Message | None:
        """Returns the next message to this node, None where there is none."""
        if (received := self._receive()) is None:
            return None
        head, tree = received
        run_id = head.metadata.run_id
        contents = pull_objects(
            [part.object_id for part in iterate_object_tree(tree)], lambda name: self._pull(run_id, name)
        )
        self._confirm(run_id, head.metadata.message_id)
        message = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(message, Message)
        message.metadata.__dict__["_message_id"] = tree.object_id
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = run_id, self.node_id, 1
        return message

    def answer(self, sent: Sent) -> str:
        """Sends a reply; returns what came of it."""
        run_id = sent.message.metadata.run_id
        try:
            wanted, session = self._send(sent.message, sent.tree, 0.1)
            for name, content in sent.objects.items():
                if name in wanted and name not in sent.withheld:
                    self._push(run_id, session, name, content)
        except Exception as error:  # what the SuperLink refuses is no fault of the test
            return f"refused: {type(error).__name__}: {str(error)[:200]}"
        return f"sent {sum(map(len, sent.objects.values()))} bytes"


def keys(path: Path) -> tuple[ec.EllipticCurvePrivateKey, ec.EllipticCurvePublicKey]:
    """Returns a node's keys."""
    private = load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return private, private.public_key()


def main(ca: str, key: str, superlink: str, honest: str) -> None:
    """Answers until it is ended."""
    from tests.e2e.lies import Liar

    liar = Liar(json.loads(honest))
    with http_request_response(superlink, False, ca, keys(Path(key))) as calls:
        connection = Connection(calls)
        print(f"SuperNode ID: {connection.node_id}", flush=True)
        while True:
            asked = connection.asked()
            if asked is None:
                time.sleep(0.3)
                continue
            name, answers = liar.answers(asked)
            done = [connection.answer(sent) for sent in answers]
            about = {"kind": asked.metadata.message_type, "round": asked.metadata.group_id, "lie": name, "done": done}
            print(json.dumps(about), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
