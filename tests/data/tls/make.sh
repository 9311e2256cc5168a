#!/bin/sh
# Makes every file beside it anew, except this one and README.md. Needs OpenSSL 3.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat > "$work/ca.cnf" <<CNF
[ca]
default_ca = ca
[ca]
database = $work/index
new_certs_dir = $work
rand_serial = yes
default_md = sha256
policy = any
email_in_dn = yes
unique_subject = no
# From before this project began, so that no test depends on the clock of its machine.
default_startdate = 20200101000000Z
default_enddate = 21200101000000Z
[any]
countryName = optional
organizationName = optional
organizationalUnitName = optional
commonName = supplied
emailAddress = optional
[authority]
basicConstraints = critical,CA:TRUE
keyUsage = critical,keyCertSign,cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost,IP:127.0.0.1,IP:::1
[client]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
[peer]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = serverAuth,clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
CNF
: > "$work/index"

key() { openssl genpkey -quiet -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }
authority() { # file, subject
    key "$work/$1.key"
    openssl req -new -key "$work/$1.key" -subj "$2" -out "$work/csr"
    openssl ca -batch -notext -config "$work/ca.cnf" -selfsign -keyfile "$work/$1.key" \
        -extensions authority -in "$work/csr" -out "$1.pem" 2> "$work/log"
}
certificate() { # file, subject, authority, kind
    key "$1.key"
    openssl req -new -key "$1.key" -subj "$2" -out "$work/csr"
    openssl ca -batch -notext -config "$work/ca.cnf" -cert "$3.pem" -keyfile "$work/$3.key" \
        -extensions "$4" -in "$work/csr" -out "$1.pem" 2> "$work/log"
}

authority ca "/C=XX/O=duolog/CN=duolog test authority"
authority other-ca "/C=XX/O=duolog/CN=another test authority"
certificate server "/C=XX/O=duolog/CN=localhost" ca server
certificate server-renewed "/C=XX/O=duolog/OU=renewed/CN=localhost" ca server
certificate client "/C=XX/O=duolog, inc./OU=clients/CN=alice/emailAddress=alice@example.org" ca client
certificate stranger "/C=XX/O=duolog/CN=mallory" other-ca client
authority peer-ca "/C=XX/O=duolog/CN=servers of a test ensemble"
certificate peer "/C=XX/O=duolog/CN=a server of the ensemble" peer-ca peer
certificate peer-renewed "/C=XX/O=duolog/OU=renewed/CN=a server of the ensemble" peer-ca peer
certificate server-of-peers "/C=XX/O=duolog/CN=for servers only" peer-ca server
printf 'open sesame\n' > server-encrypted.password
openssl pkcs8 -topk8 -v2 aes-256-cbc -in server.key -passout file:server-encrypted.password \
    -out server-encrypted.key
