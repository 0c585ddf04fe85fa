#!/usr/bin/env bash
# Install the Slurm that tests/slurm brings up, on Debian as root. Where that is not possible those tests skip,
# with the reason, so this never fails. No service is started: the tests start their own daemons.
missing=false
for program in slurmctld slurmd munged srun; do command -v "$program" >/dev/null || missing=true; done
if ! $missing; then exit 0; fi
if [[ $EUID != 0 ]] || ! command -v apt-get >/dev/null; then
    echo "no Slurm here, and no root with apt-get to install it: tests/slurm will skip"
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1  # in runlevel 1 packages start no service
quietly() { timeout 180 apt-get -qq -y -o Acquire::Retries=2 -o DPkg::Lock::Timeout=60 "$@" </dev/null >/dev/null 2>&1; }
packages=(slurmctld slurmd slurm-client munge)
quietly install --no-install-recommends "${packages[@]}" ||  # with the lists that are there, if any
    { quietly update && quietly install --no-install-recommends "${packages[@]}"; } ||
    echo "the packages ${packages[*]} could not be installed: tests/slurm will skip"
exit 0
