package builtin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

func (conf *tuningConf) backupFile(c *call) string {
	return filepath.Join(conf.DataDir, c.containerID+"_"+c.ifName+".json")
}

// backup notes what the pod's interface was like before.
func (conf *tuningConf) backup(c *call, before linkState) error {
	if err := os.MkdirAll(conf.DataDir, 0o700); err != nil {
		return fmt.Errorf("failed to create backup directory: %w", err)
	}
	b, err := json.MarshalIndent(before, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(conf.backupFile(c), b, 0o600); err != nil {
		return fmt.Errorf("failed to save file %s.json: %w", c.ifName, err)
	}
	return nil
}

// readBackup returns fs.ErrNotExist when nothing was noted. Notes that cannot be
// read restore nothing.
func (conf *tuningConf) readBackup(c *call) (before linkState, err error) {
	b, err := os.ReadFile(conf.backupFile(c))
	if err == nil && json.Unmarshal(b, &before) != nil {
		return linkState{}, nil
	}
	return before, err
}

func (conf *tuningConf) dropBackup(c *call) error {
	if err := os.Remove(conf.backupFile(c)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget what %s was like: %w", c.ifName, err)
	}
	return nil
}
