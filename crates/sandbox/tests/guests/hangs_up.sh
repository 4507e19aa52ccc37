#!/bin/sh
# A child that closes its socket and does not end.
exec 0<&-
exec sleep 600
