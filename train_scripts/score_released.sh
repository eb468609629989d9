#!/usr/bin/env bash
# Score the six networks that the authors of GLeaD released by the published protocol, and print them in Table 1.
# FOLDER holds the files that their README links to: ffhq.pkl, church.pkl, bedroom.pkl ("Ours") and ffhq-ggdr.pkl,
# church-ggdr.pkl, bedroom-ggdr.pkl ("Ours*", GLeaD+GGDR). Missing files are left out.
# Scores are kept in FOLDER. The same command resumes.
# Usage: bash train_scripts/score_released.sh FOLDER [any option of calc_metrics.py table]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

offer_help "$@"
[[ $# -ge 1 && -d $1 ]] || die 'Say in which folder the networks are: bash train_scripts/score_released.sh FOLDER'
folder=$1
shift
entries=''
for name in ffhq church bedroom; do
    case $name in
        ffhq) dataset=FFHQ made_by=ffhq ;;
        *) dataset="LSUN ${name^}" made_by=lsun-$name ;;
    esac
    for method in GLeaD GLeaD+GGDR; do
        network=$name.pkl
        [[ $method == GLeaD ]] || network=$name-ggdr.pkl
        if [[ -e $folder/$network ]]; then
            data=$(find_data "${name}256" "$made_by")
            data=$(realpath "$data")
            printf -v entry '{"row": "%s", "dataset": "%s", "network": "%s", "data": "%s"}' \
                "$method" "$dataset" "$network" "$data"
            entries+=${entries:+, }$entry
        fi
    done
done
[[ -n $entries ]] || die "$folder holds none of {ffhq,church,bedroom}{,-ggdr}.pkl: download them first." \
    'https://github.com/EzioBy/glead has the links.'
printf '[%s]\n' "$entries" >"$folder/released.json"
setup_python
run_python "$REPO/calc_metrics.py" table glead-1 --models="$folder/released.json" "$@"
