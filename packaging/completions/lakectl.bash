# bash completion for lakectl: commands, actions, options, branches and tags.
# Words come from lakectl itself, so this file knows no command by name.

_lakectl_names() { # branches and tags of the lake at hand, when it answers
	{
		lakectl -q ${_lakectl_lake:+--lake "$_lakectl_lake"} branch
		lakectl -q ${_lakectl_lake:+--lake "$_lakectl_lake"} tag
	} 2>/dev/null | awk '{ print $1 }'
}

_lakectl_commands() { # the lines of `lakectl --help`: "  branch create   make a branch"
	lakectl --help 2>/dev/null | awk '/^  [a-z]/ { print $1 }' | sort -u
}

_lakectl() {
	local current=${COMP_WORDS[COMP_CWORD]} command= i _lakectl_lake=
	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		case ${COMP_WORDS[i]} in
		--lake) _lakectl_lake=${COMP_WORDS[++i]} ;;
		-*) ;;
		*)
			command=${COMP_WORDS[i]}
			break
			;;
		esac
	done
	if [[ -z $command ]]; then
		COMPREPLY=($(compgen -W "$(_lakectl_commands) --lake --json --quiet --help --version" -- "$current"))
	elif [[ $current == -* ]]; then
		COMPREPLY=($(compgen -W "$(lakectl "$command" --help 2>/dev/null | grep -oE -- '--[a-z-]+' | sort -u)" -- "$current"))
	elif [[ $command == @(branch|tag|audit|webhook) && $COMP_CWORD == $((i + 1)) ]]; then
		COMPREPLY=($(compgen -W "$(lakectl --help 2>/dev/null | awk -v c="$command" '$1 == c && $2 ~ /^(list|create|delete|rename|add|remove|run|log|test)$/ { print $2 }')" -- "$current"))
	elif [[ $command == @(init|clone|mount|umount) ]]; then
		COMPREPLY=($(compgen -d -- "$current"))
	elif [[ $command == warm ]]; then
		COMPREPLY=($(compgen -f -- "$current") $(compgen -W "$(_lakectl_names)" -- "$current"))
	else
		COMPREPLY=($(compgen -W "$(_lakectl_names)" -- "$current"))
	fi
}
complete -o default -F _lakectl lakectl
