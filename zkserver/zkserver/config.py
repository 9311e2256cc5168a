"""The settings of this process; those of the ensemble's behaviour are `core.config.CoreConfig`.

Read once, in `__main__`, from flags, environment (`ZKSERVER_...`) and a TOML file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import Final, Literal

from duolog_protocol.errors import ConfigError
from duolog_runtime.config import is_loopback, require

from .core.distinguished_name import is_name
from .core.members import Member, parse_members, require_possible

_MIB = 1024 * 1024
FOUR_LETTER_WORDS: Final = (
    "conf", "cons", "crst", "dirs", "dump", "envi", "gtmk", "hash", "isro", "mntr", "ruok", "srst",
    "srvr", "stat", "stmk", "wchc", "wchp", "wchs",
)  # fmt: skip
"""All there are; `server.words` has their texts."""
MASKED: Final = "***"
"""What is shown of a secret: a field with `repr=False`."""


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """This server: where it listens, where it keeps its data, what it takes from clients."""

    data_directory: str = field(metadata={"flag": "data"})
    """Directory of the transaction log and the snapshots; made where it is missing (`dataDir`)."""
    host: str = "127.0.0.1"
    """Address to listen on; one that is not loopback needs --insecure (`clientPortAddress`)."""
    port: int = 2181
    """Port to listen on; 0 for any free one (`clientPort`)."""
    insecure: bool = False
    """Listen on an address that others can reach, although not everybody has to say who he is."""
    ensemble_id: int = 0
    """The ensemble this server belongs to; 0 takes the one of the data directory, or draws one."""
    servers: tuple[str, ...] = ()
    """The members of the ensemble, this one among them, as
    ID=HOST:PEER_PORT[:participant|:observer][;[HOST:]CLIENT_PORT]; none: this server stands alone
    (`server.ID`)."""
    ping_interval_ms: int = 250
    """How often the leader of an ensemble and its followers hear of each other."""
    sync_limit_ms: int = 1_500
    """A server of the ensemble that was silent for so long is taken for gone (`syncLimit`)."""
    init_limit_ms: int = 5_000
    """Time that a new leader has until a quorum has its history (`initLimit`)."""
    read_only_after_ms: int = 0
    """Without a leader for so long, let clients read what is here that are content with it; 0:
    never (`readonlymode.enabled`)."""
    loop: Literal["auto", "uvloop", "asyncio"] = "auto"
    """Event loop; auto takes uvloop where it is installed."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level that is logged on stderr."""
    max_connections: int = 10_000
    """Most client connections; 0 for no bound (`maxCnxns`)."""
    max_connections_per_address: int = 60
    """Most connections of one address; 0 for no bound (`maxClientCnxns`)."""
    max_unknown_connections: int = 256
    """Most connections without a session; beyond it the oldest of them is dropped."""
    connection_tokens: int = 0
    """Connections that may come at once; beyond, they come at `connection_tokens_per_second`, and
    what is faster is refused; 0: no bound (`zookeeper.connection_throttle_tokens`)."""
    connection_tokens_per_second: int = 100
    """New connections a second in the long run, where `connection_tokens` bounds them
    (`zookeeper.connection_throttle_fill_time`, `..._fill_count`)."""
    handshake_timeout_ms: int = 10_000
    """Time a connection has until its session is there."""
    jute_max_frame_bytes: int = 1_048_575
    """Longest frame of a ZooKeeper client that has a session (`jute.maxbuffer`)."""
    max_unsent_bytes: int = 4 * _MIB
    """A client that leaves more than this unread is dropped."""
    snap_count: int = 100_000
    """Transactions after which a snapshot is taken, at a random point in its upper half
    (`snapCount`)."""
    snap_retain_count: int = 3
    """Snapshots kept, with the logs that they need (`autopurge.snapRetainCount`)."""
    log_file_bytes: int = 64 * _MIB
    """Size at which a new log file is begun."""
    preallocate_bytes: int = 4 * _MIB
    """Step in which disk space is reserved for the log, as zeros written beforehand: each byte is
    written twice (`preAllocSize`)."""
    fsync_warning_ms: int = 1_000
    """A sync of the log that takes longer is logged and counted (`fsync.warningthresholdms`)."""
    four_letter_words: tuple[str, ...] = ("conf", "envi", "isro", "mntr", "ruok", "srvr", "stat")
    """Four-letter words that are answered; * for all (`4lw.commands.whitelist`)."""
    http_port: int = -1
    """Port of metrics, health and commands over HTTP; -1: none, 0: any free one
    (`metricsProvider.httpPort`, `admin.serverPort`)."""
    http_host: str = "127.0.0.1"
    """Address of that port; one that is not loopback needs --insecure
    (`metricsProvider.httpHost`, `admin.serverAddress`)."""
    max_listed: int = 10_000
    """Most entries of a list that a word or command answers with: connections, sessions,
    ephemerals, watches. A longer one ends early and says so."""
    admin_snapshot: bool = False
    """Take a snapshot when POST /commands/snapshot asks for it (`admin.snapshot.enabled`)."""
    admin_snapshot_interval_ms: int = 300_000
    """Least time between two such requests (`admin.snapshot.intervalInMS`)."""
    stop_timeout_ms: int = 10_000
    """Longest wait, at a stop, for what is on its way to the disk and to clients; then again for
    a disk that hangs. A sync that hangs in the loop is not ended by it."""
    peer_tls_certificate_file: str = ""
    """PEM file of the certificate by which this server is known to the others of its ensemble. With
    it they speak nothing but TLS with each other, and both sides prove who they are
    (`ssl.quorum.keyStore.location`, `sslQuorum`)."""
    peer_tls_key_file: str = ""
    """PEM file of its private key, closed to others and not encrypted; none: it is in the
    certificate's file."""
    peer_tls_ca_file: str = ""
    """PEM file of the authority that all servers' certificates come from, and nobody else's
    (`ssl.quorum.trustStore.location`)."""
    tls_certificate_file: str = ""
    """PEM file of this server's certificate and its chain. With it TLS is answered on `port`, told
    by its first byte, beside what is not TLS (`ssl.keyStore.location`, `client.portUnification`).
    This and the other TLS files may be replaced while the server runs."""
    tls_key_file: str = ""
    """PEM file of the certificate's private key, closed to others; none: it is in the certificate's
    file (`ssl.keyStore.location`)."""
    tls_key_password_file: str = ""
    """File with the key's password, closed to others; none: the key is not encrypted
    (`ssl.keyStore.passwordPath`)."""
    tls_ca_file: str = ""
    """PEM file of the authorities that clients' certificates must come from
    (`ssl.trustStore.location`)."""
    tls_client_auth: Literal["none", "want", "need"] = "none"
    """Whether a TLS client is asked for a certificate, and may do without; its subject is an
    identity of the scheme x509 (`ssl.clientAuth`, which begins as need)."""
    tls_port: int | None = None
    """A second port, for TLS only; 0 for any free one (`secureClientPort`)."""
    tls_required: bool = False
    """Answer nothing but TLS on `port`, too."""
    super_digests: tuple[str, ...] = field(default=(), repr=False)
    """Whom ACLs do not bind, as user:base64(sha1(user:password)): whoever sends the password
    (`DigestAuthenticationProvider.superDigest`)."""
    super_x509: str = ""
    """Whom ACLs do not bind, as the subject of a certificate
    (`X509AuthenticationProvider.superUser`)."""
    super_sasl: str = ""
    """Whom ACLs do not bind, as a user of `sasl_users_file` (`zookeeper.superUser`)."""
    sasl_users_file: str = ""
    """Who may authenticate by SASL DIGEST-MD5: a file of lines user=password, closed to all but its
    owner (the section `Server` of a JAAS file)."""
    enforce_auth_schemes: tuple[str, ...] = ()
    """Serve only clients with an identity of one of these schemes: digest (any password will do),
    ip, x509, sasl (`enforce.auth.enabled`, `enforce.auth.schemes`, `sessionRequireClientSASLAuth`).
    """
    allow_failed_sasl: bool = False
    """Keep a client whose SASL authentication failed, as nobody, instead of closing
    (`allowSaslFailedClients`)."""

    def __post_init__(self) -> None:
        require(self.data_directory != "", "data", self.data_directory, "must not be empty")
        require(0 <= self.port <= 65535, "port", self.port, "must be in [0, 65535]")
        rule = (
            "is not a loopback address: require certificates (tls_required, tls_client_auth=need) "
            "or SASL (enforce_auth_schemes=sasl), or say --insecure"
        )
        guarded = self.insecure or is_loopback(self.host) or self.knows_everybody
        require(guarded, "host", self.host, rule)
        rule = "is not a loopback address; nobody is authenticated on it, so that needs --insecure"
        guarded = self.insecure or is_loopback(self.http_host)
        require(guarded, "http_host", self.http_host, rule)
        require(
            -1 <= self.http_port <= 65535, "http_port", self.http_port, "must be in [-1, 65535]"
        )
        for word in self.four_letter_words:
            rule = f"{word!r} is not a four-letter word; there are * {' '.join(FOUR_LETTER_WORDS)}"
            require(word == "*" or word in FOUR_LETTER_WORDS, "four_letter_words", word, rule)
        require(
            0 <= self.ensemble_id < 1 << 64, "ensemble_id", self.ensemble_id, "must be in [0, 2^64)"
        )
        for name in (
            "max_connections",
            "max_connections_per_address",
            "connection_tokens",
            "read_only_after_ms",
            "fsync_warning_ms",
            "admin_snapshot_interval_ms",
        ):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be at least 0")
        require(
            1024 <= self.jute_max_frame_bytes <= 64 * _MIB,
            "jute_max_frame_bytes",
            self.jute_max_frame_bytes,
            f"must be in [1024, {64 * _MIB}]",
        )
        for name, low in (
            ("max_unknown_connections", 1),
            ("connection_tokens_per_second", 1),
            ("handshake_timeout_ms", 1),
            ("max_listed", 1),
            ("max_unsent_bytes", 64 * 1024),
            ("snap_count", 2),
            ("snap_retain_count", 3),
            ("log_file_bytes", 4096),
            ("preallocate_bytes", 4096),
            ("stop_timeout_ms", 1),
        ):
            value = getattr(self, name)
            require(value >= low, name, value, f"must be at least {low}")
        self._check_servers()
        self._check_tls()
        self._check_auth()

    @property
    def members(self) -> tuple[Member, ...]:
        """The members of the ensemble, by id; none: standalone."""
        return parse_members(self.servers)

    @property
    def knows_everybody(self) -> bool:
        """Nobody is served who has not proved who he is; an address or a digest proves nothing."""
        return (self.tls_required and self.tls_client_auth == "need") or (
            bool(self.enforce_auth_schemes) and {*self.enforce_auth_schemes} <= {"x509", "sasl"}
        )

    def visible_settings(self) -> dict[str, object]:
        """All settings, for those who ask the server for its configuration; secrets are masked."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        secrets = {each.name for each in fields(self) if not each.repr}
        return {k: MASKED if v and k in secrets else v for k, v in values.items()}

    def _check_servers(self) -> None:
        try:
            members = self.members
            require_possible(members)
        except ValueError as error:
            raise ConfigError("servers", ",".join(self.servers), str(error)) from error
        has_tls = self.peer_tls_certificate_file != ""
        for name in ("peer_tls_key_file", "peer_tls_ca_file"):
            value = getattr(self, name)
            rule = "is of no use without peer_tls_certificate_file"
            require(has_tls or value == "", name, value, rule)
        rule = "is needed: both sides of a connection between servers show a certificate"
        has_authority = self.peer_tls_ca_file != ""
        require(has_authority or not has_tls, "peer_tls_ca_file", self.peer_tls_ca_file, rule)
        for each in members:
            guarded = self.insecure or has_tls or is_loopback(each.host)
            rule = (
                f"{each.host} is not a loopback address: servers have to prove to each other who "
                "they are (peer_tls_certificate_file), or say --insecure"
            )
            require(guarded, "servers", str(each), rule)
        require(self.ping_interval_ms >= 1, "ping_interval_ms", self.ping_interval_ms, "too small")
        for name in ("sync_limit_ms", "init_limit_ms"):
            value, low = getattr(self, name), 2 * self.ping_interval_ms
            rule = f"must be at least twice ping_interval_ms, {low}"
            require(value >= low, name, value, rule)

    def _check_tls(self) -> None:
        if self.tls_certificate_file == "":
            for each in fields(self):
                if each.name.startswith("tls_"):
                    value = getattr(self, each.name)
                    rule = "is of no use without tls_certificate_file"
                    require(value == each.default, each.name, value, rule)
        rule = "is needed to check the certificates that tls_client_auth asks for"
        asked = self.tls_client_auth != "none"
        require(not asked or self.tls_ca_file != "", "tls_ca_file", self.tls_ca_file, rule)
        port = self.tls_port
        if port is not None:
            require(0 <= port <= 65535, "tls_port", port, "must be in [0, 65535]")
            require(port == 0 or port != self.port, "tls_port", port, "must differ from port")

    def _check_auth(self) -> None:
        for digest in self.super_digests:
            user, colon, rest = digest.partition(":")
            shown = f"{user}{colon}..."
            rule = "must be user:base64(sha1(user:password))"
            require(
                re.fullmatch(r"[A-Za-z0-9+/]{27}=", rest) is not None, "super_digests", shown, rule
            )
        needed = {
            "x509": (self.tls_client_auth != "none", "tls_client_auth=want or need"),
            "sasl": (self.sasl_users_file != "", "sasl_users_file"),
        }
        for scheme in self.enforce_auth_schemes:
            rule = "must be of digest, ip, x509, sasl"
            known = scheme in ("digest", "ip", "x509", "sasl")
            require(known, "enforce_auth_schemes", self.enforce_auth_schemes, rule)
        for name, schemes in (
            ("enforce_auth_schemes", self.enforce_auth_schemes),
            ("super_x509", ("x509",) if self.super_x509 else ()),
            ("super_sasl", ("sasl",) if self.super_sasl else ()),
            ("allow_failed_sasl", ("sasl",) if self.allow_failed_sasl else ()),
        ):
            for scheme in schemes:
                there, what = needed.get(scheme, (True, ""))
                require(there, name, getattr(self, name), f"needs {what}")
        rule = "is no distinguished name such as CN=alice,O=example"
        require(is_name(self.super_x509), "super_x509", self.super_x509, rule)
