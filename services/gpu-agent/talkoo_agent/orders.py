"""What the node is told from outside: by the keeper of its Kubernetes node, and by the end of its pod."""

from __future__ import annotations

from pathlib import Path

from talkoo_api.agent.v1 import node_pb2

from talkoo_runtime.node_files import LEAVE_FILE, ORDERS_FILE, read_message

LEAVING = "the agent is being replaced"


def read_orders(folder: Path) -> node_pb2.NodeOrders:
    """The keeper's, and the pod's end above them."""
    orders = read_message(folder / ORDERS_FILE, node_pb2.NodeOrders) or node_pb2.NodeOrders()
    if (folder / LEAVE_FILE).exists():
        orders.drain, orders.hand_back = LEAVING, True
    return orders
