"""The original as an oracle: Apache ZooKeeper and zkserver side by side, over the jute protocol."""
