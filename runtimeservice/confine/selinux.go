package confine

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
)

// categories is how many MCS categories the policies of all distributions have.
const categories = 1024

// levels hands out a pair of categories to each pod, so that processes of one
// pod cannot touch the files of another. Records of pods say which are taken.
type levels struct {
	mu sync.Mutex
	of map[string]string // by sandbox ID
}

// take returns the pod's level, a new one the first time. intn(n) is any
// number below n.
func (l *levels) take(pod string, intn func(int) int) (string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have, ok := l.of[pod]; ok {
		return have, nil
	}
	taken := make(map[string]bool, len(l.of))
	for _, level := range l.of {
		taken[level] = true
	}
	a, b := intn(categories), intn(categories-1)
	if b >= a {
		b++
	}
	level, ok := pick(taken, a, b, categories)
	if !ok {
		return "", fmt.Errorf("all SELinux categories are taken; remove pods: %w", errdefs.ErrResourceExhausted)
	}
	if l.of == nil {
		l.of = map[string]string{}
	}
	l.of[pod] = level
	return level, nil
}

// pick returns the first level that is not taken from the pair (a, b) on, of n
// categories. There are many more pairs than pods on any node, so that a random
// one is free, or one soon after it. Pure.
func pick(taken map[string]bool, a, b, n int) (string, bool) {
	for range n * n {
		if level := fmt.Sprintf("s0:c%d,c%d", min(a, b), max(a, b)); a != b && !taken[level] {
			return level, true
		}
		if b = (b + 1) % n; b == 0 {
			a = (a + 1) % n
		}
	}
	return "", false
}

func (l *levels) keep(pod, level string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.of == nil {
		l.of = map[string]string{}
	}
	if level != "" {
		l.of[pod] = level
	}
}

func (l *levels) drop(pod string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.of, pod)
}

// policyLabels returns what the policy has for containers and their files, with
// a level of the library's choice; "" when it has nothing.
func policyLabels() (process, file string) {
	process, file, err := label.InitLabels(nil)
	if err != nil {
		return "", ""
	}
	selinux.ReleaseLabel(process) // levels are ours to give
	return process, file
}

// TakeLevel gives the pod a level of its own; "" where SELinux is not on. The
// same pod has the same one until DropLevel.
func (n *Node) TakeLevel(pod string) (string, error) {
	if !n.selinux {
		return "", nil
	}
	return n.levels.take(pod, rand.IntN)
}

// KeepLevel notes the level of a pod of an earlier daemon's.
func (n *Node) KeepLevel(pod, level string) { n.levels.keep(pod, level) }

// DropLevel gives the level of a pod that is gone to others.
func (n *Node) DropLevel(pod string) { n.levels.drop(pod) }

// CheckLabel refuses a label that the node's policy does not know.
func (n *Node) CheckLabel(text string) error {
	if text == "" || !n.selinux {
		return nil
	}
	if err := selinux.SecurityCheckContext(text); err != nil {
		return fmt.Errorf("selinux_options: the node's policy does not know the label %q: %w: %w", text, errdefs.ErrInvalidArgument, err)
	}
	return nil
}

// Relabel gives a volume the label; "" leaves it as it is.
func (n *Node) Relabel(path, text string) error {
	if text == "" || !n.selinux {
		return nil
	}
	return relabel(path, text)
}
