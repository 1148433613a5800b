#!/bin/sh
# A PostgreSQL server from its first start to its stop, under load in between.
# usage: postgresql.sh BINARIES FOLDER
set -e
PATH=$1:$PATH
data=$2/data
export PGHOST=$2 PGUSER=postgres PGDATABASE=postgres
cd "$2"

initdb -D "$data" -A trust -U postgres --no-sync > initdb.log
# also when a signal ends this script
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'pg_ctl -D "$data" -m fast -w -s stop' EXIT
pg_ctl -D "$data" -l server.log -w -s \
    -o "-c listen_addresses= -c unix_socket_directories=$2 -c shared_buffers=64MB -c fsync=off" start
pgbench -i -q -s 5
pgbench -n -c 4 -j 2 -t 500
