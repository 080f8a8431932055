#!/bin/sh
# Runs a program, and ends badly, whatever became of it.
"$@"
exit 3
