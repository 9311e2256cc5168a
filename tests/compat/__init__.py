"""ZooKeeper's own programs against Apache ZooKeeper and against zkserver; see README.md here."""
