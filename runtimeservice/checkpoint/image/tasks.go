package image

import (
	"fmt"
	"strconv"

	"google.golang.org/protobuf/encoding/protowire"
)

var (
	pstreeFields = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u32 | many}
	coreFields   = message{1: i32, 2: blob, 3: blob, 4: blob, 5: blob, 6: blob, 8: blob, 9: blob, 10: blob, 11: blob, 12: blob, 13: blob}
	taskFields   = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u64, 6: text, 7: blob, 8: blob, 9: u32, 10: blob, 11: i32, 12: u32, 13: u32, 14: i32,
		15: blob | many, 18: flag, 20: u64, 21: u32, 22: u32}
	threadFields = message{1: u64, 2: u32, 3: s32, 4: u32, 5: u32, 6: u64, 7: blob, 8: u32, 9: blob, 10: blob, 11: i32, 12: u32, 13: text, 14: u64,
		15: blob, 16: u32}
	limitsFields = message{1: blob | many}
	limitFields  = message{1: u64, 2: u64}
	credsFields  = message{1: u32, 2: u32, 3: u32, 4: u32, 5: u32, 6: u32, 7: u32, 8: u32, 9: u32 | many, 10: u32 | many, 11: u32 | many,
		12: u32 | many, 13: u32, 14: u32 | many, 15: text, 16: text, 17: blob, 18: u32, 19: u32 | many}
)

func (r *reader) pstree(_ uint32, b []byte) error {
	return records(b, magicPstree, func(b []byte) error {
		var t Task
		err := pstreeFields.read(b, func(n protowire.Number, v value) error {
			switch n {
			case 1:
				t.PID = v.u32()
			case 2:
				t.Parent = v.u32()
			case 5:
				if r.count++; r.count > maxTasks {
					return fmt.Errorf("more than %d threads", maxTasks)
				}
				t.Threads = append(t.Threads, Thread{TID: v.u32()})
			}
			return nil
		})
		if err != nil {
			return err
		}
		if t.PID == 0 || len(t.Threads) == 0 || t.Threads[0].TID != t.PID {
			return fmt.Errorf("process %d is not the first of its threads", t.PID)
		}
		r.img.Tasks = append(r.img.Tasks, t)
		return nil
	})
}

// tasks reads the images of the processes that are in the tree.
func (r *reader) tasks() error {
	seen := map[uint32]bool{}
	for i := range r.img.Tasks {
		t := &r.img.Tasks[i]
		for j := range t.Threads {
			tid := t.Threads[j].TID
			if seen[tid] {
				return fmt.Errorf("pstree.img: %d is there twice", tid)
			}
			seen[tid] = true
			name := "core-" + strconv.FormatUint(uint64(tid), 10) + ".img"
			b, err := r.file(name, false)
			if err == nil {
				err = one(b, magicCore, func(b []byte) error { return t.core(r, j, b) })
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
		name := "ids-" + strconv.FormatUint(uint64(t.PID), 10) + ".img"
		if _, ok := r.names[name]; !ok {
			continue
		}
		b, err := r.file(name, false)
		if err == nil {
			err = one(b, magicIDs, func(b []byte) error {
				ns, err := namespaces(b)
				t.Namespaces = &ns
				return err
			})
		}
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func (t *Task) core(r *reader, thread int, b []byte) error {
	return coreFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 3:
			if thread > 0 {
				return nil // only that of the process counts
			}
			return t.process(r, v.b)
		case 5:
			return t.Threads[thread].thread(r, v.b)
		}
		return nil
	})
}

// States of processes.
const (
	alive   = 1
	dead    = 2
	stopped = 3
)

func (t *Task) process(r *reader, b []byte) error {
	state := uint32(0)
	err := taskFields.read(b, func(n protowire.Number, v value) error {
		switch n {
		case 1:
			state = v.u32()
		case 8:
			return limitsFields.read(v.b, func(_ protowire.Number, v value) error {
				var l Limit
				err := limitFields.read(v.b, func(n protowire.Number, v value) error {
					*[]*uint64{&l.Soft, &l.Hard}[n-1] = v.num
					return nil
				})
				if len(t.Limits) >= 64 {
					return fmt.Errorf("too many limits")
				}
				t.Limits = append(t.Limits, l)
				return err
			})
		case 9:
			r.img.Cgroups.Assigned = append(r.img.Cgroups.Assigned, v.u32())
		case 14:
			t.OOMScoreAdj = v.i32()
		}
		return nil
	})
	if err == nil && state != alive && state != dead && state != stopped {
		err = fmt.Errorf("state %d", state)
	}
	t.Dead = state == dead
	return err
}

func (t *Thread) thread(r *reader, b []byte) error {
	return threadFields.read(b, func(n protowire.Number, v value) (err error) {
		switch n {
		case 3:
			t.Nice = v.i32()
		case 4:
			t.Policy = v.u32()
		case 5:
			t.Prio = v.u32()
		case 10:
			t.Creds, err = creds(v.b)
		case 11:
			t.Seccomp = v.u32()
		case 12:
			t.Filter = v.u32()
		case 16:
			r.img.Cgroups.Assigned = append(r.img.Cgroups.Assigned, v.u32())
		}
		return err
	})
}

func creds(b []byte) (*Creds, error) {
	c := &Creds{}
	nums := map[protowire.Number]*uint32{1: &c.UID.Real, 2: &c.GID.Real, 3: &c.UID.Effective, 4: &c.GID.Effective, 5: &c.UID.Saved,
		6: &c.GID.Saved, 7: &c.UID.FS, 8: &c.GID.FS, 13: &c.SecureBits}
	sets := map[protowire.Number]*uint64{9: &c.Caps.Inheritable, 10: &c.Caps.Permitted, 11: &c.Caps.Effective, 12: &c.Caps.Bounding, 19: &c.Caps.Ambient}
	words := map[protowire.Number]int{}
	err := credsFields.read(b, func(n protowire.Number, v value) error {
		if p := nums[n]; p != nil {
			*p = v.u32()
		}
		if p := sets[n]; p != nil {
			if words[n] == 2 {
				return fmt.Errorf("more than 64 capabilities")
			}
			*p |= v.num << (32 * words[n])
			words[n]++
		}
		switch n {
		case 14:
			if len(c.Groups) >= 65536 {
				return fmt.Errorf("more than 65536 groups")
			}
			c.Groups = append(c.Groups, v.u32())
		case 15:
			c.Label = v.text()
		case 16:
			c.SockLabel = v.text()
		case 17:
			return fmt.Errorf("it has policies of AppArmor")
		case 18:
			c.NoNewPrivs = v.u32() == 1
		}
		return nil
	})
	for n, w := range words {
		if w != 2 {
			err = fmt.Errorf("capabilities of %d bits in field %d", 32*w, n)
		}
	}
	if err == nil && len(words) < 4 {
		err = fmt.Errorf("there are not all sets of capabilities")
	}
	return c, err
}
