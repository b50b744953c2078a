#!/bin/sh
# Chromium and its driver, where they are missing and this user may install packages; otherwise nothing, and exit 1.
set -eu
if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then exit 0; fi
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 1
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends chromium chromium-driver fonts-dejavu-core
