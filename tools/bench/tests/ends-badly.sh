#!/bin/sh
# SPDX-License-Identifier: LGPL-2.1-or-later
# Runs a program, and ends badly, whatever became of it.
"$@"
exit 3
