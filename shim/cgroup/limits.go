package cgroup

import "syscall"

// Setting is a value for a control file.
type Setting struct{ Controller, File, Value string }

// Apply writes the settings to the group's files, in their order. When one
// cannot be written, those before it get back what they were.
func (m Mode) Apply(path string, settings []Setting) error {
	if !valid(path) {
		return wrap("limit cgroup", path, syscall.EINVAL)
	}
	var files, old []string
	for _, s := range settings {
		dir := m.Dir(s.Controller, path)
		if dir == "" {
			return undo(files, old, wrap("find controller", s.Controller, syscall.ENODEV))
		}
		file := dir + "/" + s.File
		was, err := readFile(file)
		if err == nil {
			err = writeFile(file, s.Value)
		}
		if err != nil {
			return undo(files, old, wrap("write "+s.Value+" to", file, err))
		}
		files, old = append(files, file), append(old, was)
	}
	return nil
}

// undo writes the old values, the latest change first, and returns err.
func undo(files, old []string, err error) error {
	for i := len(files) - 1; i >= 0; i-- {
		_ = writeFile(files[i], old[i]) // there is nothing better to tell than err
	}
	return err
}
