#!/usr/bin/env bash
# Install the programs that some tests bring up, on Debian as root: a Slurm and a browser. Where that is not possible
# those tests skip, with the reason, so this never fails. No service is started: the tests start their own daemons.
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # in runlevel 1 packages start no service
quietly() { timeout 240 apt-get -qq -y -o Acquire::Retries=2 -o DPkg::Lock::Timeout=60 "$@" </dev/null >/dev/null 2>&1; }

provide() {  # provide TESTS PROGRAMS PACKAGE...: the packages, unless all programs are there
    local tests=$1 programs=$2 missing=false
    shift 2
    for program in $programs; do command -v "$program" >/dev/null || missing=true; done
    if ! $missing; then return; fi
    if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
        echo "no $programs here, and no root with apt-get to install them: $tests will skip"
        return
    fi
    quietly install --no-install-recommends "$@" ||  # with the lists that are there, if any
        { quietly update && quietly install --no-install-recommends "$@"; } ||
        echo "the packages $* could not be installed: $tests will skip"
}

provide tests/slurm "slurmctld slurmd munged srun" slurmctld slurmd slurm-client munge
provide "tests of web pages" chromium chromium
exit 0
