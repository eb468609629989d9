# Functions that the scripts of this folder share: their options, and torchrun with signals that reach train.py.
# Sourced, not run.
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

VARIABLES=("$PYTHON_VARIABLE")  # these scripts don't use GLEAD_DATA

# split_options NAME... -- ARGUMENT...: set OWN[NAME] to the last value of --NAME=VALUE or --NAME VALUE, TORCHRUN to the
# values of all --torchrun=OPTION, and TRAIN to all other arguments, which are for train.py.
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

# ask_to_stop: send the first request to the training processes, which finish their iteration and save. Send it to
# torchrun if there are no such processes, and any further request: torchrun kills the processes after 30 seconds.
ask_to_stop() {
    if [[ -z $ASKED ]]; then
        ASKED=yes
        printf '\n%s: train.py is asked to save and stop; once more ends it within 30 seconds.\n' "$0" >&2
        pkill -USR1 -P "$LAUNCHED" || kill "$LAUNCHED" 2>/dev/null || true
    else
        kill "$LAUNCHED" 2>/dev/null || true
    fi
}

# end_outlived PID: end torchrun LINGER seconds after its last process. After a loss of the network, it would wait for
# torchrun on the other machines. With c10d's rendezvous, that lasts until TCP gives up: 15 minutes.
end_outlived() {
    local seen='' since=$SECONDS
    while kill -0 "$1" 2>/dev/null; do
        if ps -o stat= --ppid "$1" | grep -q '^[^Z]'; then
            seen=yes since=$SECONDS
        elif [[ -n $seen ]] && ((SECONDS - since >= LINGER)); then
            printf '\n%s: ending torchrun, because its last process ended %s seconds ago.\n' "$0" "$LINGER" >&2
            kill -KILL "$1" 2>/dev/null
            return
        fi
        sleep 1 >/dev/null 2>&1  # sleep may outlive this script: it must not keep the script's output open
    done
}

# launch OPTION...: start train.py with the arguments TRAIN, by torchrun with these options and TORCHRUN. Return its
# status. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 to this script call `ask_to_stop`.
launch() {
    local command=("$PYTHON" -m torch.distributed.run "$@" ${TORCHRUN[@]+"${TORCHRUN[@]}"} "$REPO/train.py")
    last_value outdir ${TRAIN[@]+"${TRAIN[@]}"} >/dev/null || command+=(--outdir="$REPO/runs")
    command+=(${TRAIN[@]+"${TRAIN[@]}"})
    printf '$' >&2
    printf ' %q' "${command[@]}" >&2
    printf '\n' >&2
    ASKED=''
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # by default, every process would start a thread for each core
    set -m  # start torchrun in its own process group: Ctrl-C in a terminal reaches this script alone
    "${command[@]}" &
    LAUNCHED=$!
    set +m
    local watch=''
    if [[ -n ${LINGER:-} ]]; then
        end_outlived "$LAUNCHED" >/dev/null &
        watch=$!
    fi
    trap ask_to_stop INT TERM HUP USR1
    while kill -0 "$LAUNCHED" 2>/dev/null; do  # a loop, because a signal interrupts `wait`
        wait "$LAUNCHED" || true
    done
    [[ -z $watch ]] || kill "$watch" 2>/dev/null || true
    wait "$LAUNCHED"
}
