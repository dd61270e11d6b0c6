#!/usr/bin/env bash
# git inside a branch, beside git on a disk: what it says and leaves is the same; a repository outlives commits of the
# lake (which split its hard links and give its files other inode numbers), remounts, merges, and is read in revisions.
source "$(dirname "$0")/../lib/tap.sh"
source "$root/tests/lib/sides.sh"
export LC_ALL=C.UTF-8 TZ=UTC HOME=$scratch GIT_CONFIG_NOSYSTEM=1
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=c GIT_COMMITTER_EMAIL=c@d
export GIT_AUTHOR_DATE="2020-02-02T02:02:02Z" GIT_COMMITTER_DATE="2020-02-02T02:02:02Z"
ignored="/\.git|all\.bundle" # indexes hold inode numbers, logs the directory's name
git config --global init.defaultBranch main
git config --global advice.detachedHead false
git config --global safe.directory '*'

if ! command -v git >/dev/null; then
	skip "git" "git cannot be installed"
	tap_done
fi

on_repository() {
	git init -q work && cd work || return
	cp -r "$SRC/many" . && chmod -R u+rw . && ln -s many link && git add . && git commit -qm first
	for i in {1..12}; do
		echo "change $i" >>"many/0$((10 + i)).txt" && git commit -qam "change $i"
	done
	git checkout -qb topic HEAD~6 && echo topic >>many/000.txt && git mv many/001.txt moved && git commit -qam topic
	git checkout -q main && git merge -q --no-edit topic && git log --oneline --graph | cat
	echo stashed >>many/000.txt && git stash -q && git status --porcelain && git stash pop -q && git status --porcelain
	git checkout -q many && git rebase -q topic main~1 2>&1 && git checkout -q main && git status --porcelain
	git tag -am tagged v1 && git repack -adq && git fsck --full 2>&1 && git count-objects -v | grep -v size
	git worktree add -q ../tree topic && git -C ../tree status --porcelain && git worktree list | wc -l
	echo x >>../tree/moved && git -C ../tree commit -qam "in the work tree"
	git clone -q --local . ../local && git -C ../local fsck 2>&1
	find ../local/.git/objects -type f -links +1 | wc -l
	git clone -q --no-local . ../remote && git -C ../remote checkout -q topic && git -C ../remote fsck
	git -C ../remote push -q origin HEAD:refs/heads/pushed && git branch -a
	git gc -q --prune=now && git fsck --full --strict 2>&1 && git status --porcelain && git rev-parse HEAD topic v1
	git grep -c change | wc -l && git archive HEAD | sha256sum && git bundle create -q ../all.bundle --all && git bundle verify -q ../all.bundle
	git bisect start -q HEAD HEAD~8 2>&1 | grep -c bisecting && git bisect reset -q 2>&1 && git clean -xfdq && git reset -q --hard
	cp "$SRC/big" . && git add big && git commit -qm big && git cat-file blob HEAD:big | cmp - "$SRC/big" && git ls-files | wc -l
	rm -r ../tree && git worktree prune && git worktree list | wc -l
}
on_elsewhere() { # a repository of another branch, and one that is read-only
	git clone -q "$TOP/dev/repository/work" "$OTHER/cross" && git -C "$OTHER/cross" fsck && git -C "$OTHER/cross" log --oneline | wc -l
	find "$OTHER/cross/.git/objects" -type f | wc -l
	git clone -q "$TOP/dev/repository/work" . && git pull -q && git fetch -q "$OTHER/cross" topic 2>&1
	for i in {1..3}; do git -c gc.auto=1 commit -q --allow-empty -m empty$i; done
	git submodule add -q "$OTHER/cross" sub 2>&1 | head -1
	git status --porcelain
}

soundness() { # DIRECTORY: of every repository in it
	local repository
	for repository in repository/work repository/local repository/remote elsewhere; do
		git -C "$1/$repository" fsck --full && git -C "$1/$repository" log --oneline | wc -l &&
			git -C "$1/$repository" rev-parse HEAD || return 1
	done
}
clean() { # DIRECTORY
	local repository
	for repository in repository/work repository/local repository/remote elsewhere; do
		[ -z "$(git -C "$1/$repository" status --porcelain 2>&1)" ] || { git -C "$1/$repository" status; return 1; }
	done
}
same_soundness() {
	soundness "$1" >"$scratch/sound1" 2>&1 && soundness "$2" >"$scratch/sound2" 2>&1 && same "$scratch/sound1" "$scratch/sound2"
}

lives_on() { # WORD: after the branch was committed and merged
	local work=$mnt/dev/repository/work
	check "$1: clean after a commit of the lake" clean "$mnt/dev"
	check "$1: and sound" same_soundness "$disk/dev" "$mnt/dev"
	check "$1: sound where it was merged" same_soundness "$disk/dev" "$mnt/main"
	check "$1: clean there" clean "$mnt/main"
	check "$1: sound in a revision" same_soundness "$disk/dev" "$mnt/@main"
	check "$1: clean in a revision" clean "$mnt/@main"
	check "$1: a clone of a revision" git clone -q "$mnt/@main/repository/work" "$mnt/dev/of-revision"
	check "$1: which is sound" git -C "$mnt/dev/of-revision" fsck
	check_exit 128 "$1: a revision's repository takes no commits" git -C "$mnt/@main/repository/work" commit --allow-empty -m no
	check "$1: it takes commits as before" git -C "$work" commit -q --allow-empty -m more
	lakectl -q --lake "$lake" commit dev -m again
	lakectl -q --lake "$lake" umount
	lake_mount "$lake" "$mnt" $2 >/dev/null
	check "$1: clean after a remount" clean "$mnt/dev"
	git -C "$work" gc -q --aggressive --prune=now
	check "$1: sound after gc" git -C "$work" fsck --full
}

# Both hosts' branches merge into one lake: the side that did not commit sees a merge under an open repository.
merged_under() {
	local repository=$mnt/other/elsewhere/cross
	lakectl -q --lake "$lake" commit other -m cross
	lakectl -q --lake "$lake" merge other main
	check "$1: two branches' repositories, one tree" git -C "$mnt/main/elsewhere/cross" fsck
	git -C "$mnt/main/elsewhere/cross" commit -q --allow-empty -m "in main"
	lakectl -q --lake "$lake" commit main -m "in main"
	(cd "$repository" && git log --oneline >"$scratch/log1" && lakectl -q --lake "$lake" merge main other >/dev/null &&
		git log --oneline >"$scratch/log2" && git fsck >"$scratch/fsck" 2>&1)
	check "$1: a merge is seen where one stands" equal "$(wc -l <"$scratch/log2")" $(($(wc -l <"$scratch/log1") + 1))
	check "$1: and is sound" git -C "$repository" fsck
}

disk_side
number=0
for way in "${ways[@]}"; do
	number=$((number + 1)) word=${way%%|*} option=${way#*|}
	if ! begin_way $number "$option"; then
		skip "$word" "the kernel or the user may not pass through"
		continue
	fi
	lake_side "$word"
	published "$word"
	lives_on "$word" "$option"
	merged_under "$word"
	check "$word: what is stored is sound at last" lakectl -q --lake "$lake" fsck
	lakectl -q --lake "$lake" umount
done
tap_done
