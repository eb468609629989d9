# What the scripts of this folder share: their options, and torchrun with signals that reach train.py. Sourced, not run.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

# show_help: if --help is among the arguments, print the comment at the top of the script that was started, and exit.
show_help() {
    local argument
    for argument in "$@"; do
        if [[ $argument == -h || $argument == --help ]]; then
            sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
            printf '\nEnvironment: GLEAD_PYTHON = interpreter with the packages of requirements.txt, instead of .venv\n'
            exit 0
        fi
    done
}

# split_options NAME... -- ARGUMENT...: set OWN[NAME] for each --NAME=VALUE or --NAME VALUE, of several the last one;
# TORCHRUN to the values of all --torchrun=OPTION; TRAIN to the other arguments, which are train.py's.
split_options() {
    local names=' torchrun ' name value
    declare -gA OWN=()
    TORCHRUN=() TRAIN=()
    while [[ $1 != -- ]]; do
        names+="$1 "
        shift
    done
    shift
    while (($#)); do
        name=${1%%=*} name=${name#--}
        if [[ $1 != --* || $names != *" $name "* ]]; then
            TRAIN+=("$1")
            shift
            continue
        fi
        if [[ $1 == *=* ]]; then
            value=${1#*=}
        elif (($# > 1)); then
            value=$2
            shift
        else
            die "--$name needs a value"
        fi
        shift
        if [[ $name == torchrun ]]; then
            TORCHRUN+=("$value")
        else
            OWN[$name]=$value
        fi
    done
}

# check_number NAME VALUE LEAST: end with a message unless VALUE is a whole number of at least LEAST.
check_number() {
    [[ $2 =~ ^[0-9]{1,6}$ ]] && ((10#$2 >= $3)) || die "--$1=$2: expected a whole number, at least $3"
}

# ask_to_stop: the first request goes to the training processes, which finish their iteration and save. The second one
# goes to torchrun, which waits 30 seconds for them, then kills them. Without processes there is nothing to save.
ask_to_stop() {
    if [[ -z $ASKED ]]; then
        ASKED=yes
        printf '\n%s: train.py is asked to save and stop; once more ends it within 30 seconds.\n' "$0" >&2
        pkill -USR1 -P "$LAUNCHED" || kill "$LAUNCHED" 2>/dev/null || true
    else
        kill "$LAUNCHED" 2>/dev/null || true
    fi
}

# end_outlived PID: end torchrun when its last process ended LINGER seconds ago. Where the network was lost, it waits for
# torchrun on other machines, with c10d's rendezvous until TCP gives up, a quarter of an hour.
end_outlived() {
    local seen='' since=$SECONDS
    while kill -0 "$1" 2>/dev/null; do
        if ps -o stat= --ppid "$1" | grep -q '^[^Z]'; then
            seen=yes since=$SECONDS
        elif [[ -n $seen ]] && ((SECONDS - since >= LINGER)); then
            printf '\n%s: torchrun is ended, whose processes all ended %s seconds ago.\n' "$0" "$LINGER" >&2
            kill -KILL "$1" 2>/dev/null
            return
        fi
        sleep 1 >/dev/null 2>&1  # which may outlive this script, but must not keep its output open
    done
}

# launch OPTION...: train.py with the arguments TRAIN, started by torchrun with these options and TORCHRUN. Returns its
# status. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 sent to this script end training as `ask_to_stop` says.
launch() {
    local command=("$PYTHON" -m torch.distributed.run "$@" ${TORCHRUN[@]+"${TORCHRUN[@]}"} "$REPO/train.py")
    last_value outdir ${TRAIN[@]+"${TRAIN[@]}"} >/dev/null || command+=(--outdir="$REPO/runs")
    command+=(${TRAIN[@]+"${TRAIN[@]}"})
    printf '$' >&2
    printf ' %q' "${command[@]}" >&2
    printf '\n' >&2
    ASKED=''
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # PyTorch would start a thread per core in each process
    set -m  # in a process group of its own: Ctrl-C in a terminal reaches this script alone
    "${command[@]}" &
    LAUNCHED=$!
    set +m
    local watch=''
    if [[ -n ${LINGER:-} ]]; then
        end_outlived "$LAUNCHED" >/dev/null &
        watch=$!
    fi
    trap ask_to_stop INT TERM HUP USR1
    while kill -0 "$LAUNCHED" 2>/dev/null; do  # a signal ends a wait before its time
        wait "$LAUNCHED" || true
    done
    [[ -z $watch ]] || kill "$watch" 2>/dev/null || true
    wait "$LAUNCHED"
}
