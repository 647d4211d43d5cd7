package harness

import (
	"encoding/json"
	"os"
	"path/filepath"
)

// Bridge names a bridge network; zero values have defaults.
type Bridge struct {
	Name   string // of the interface: "berth0"
	Subnet string // "10.88.0.0/24"
	Then   string // one more plugin at the end of the chain; "": none
}

// WriteConflist writes a bridge network with host-local addresses, kept in
// ipamDir, and port mappings.
func WriteConflist(dir, ipamDir string, b Bridge) error {
	if b.Name == "" {
		b.Name = "berth0"
	}
	if b.Subnet == "" {
		b.Subnet = "10.88.0.0/24"
	}
	type m = map[string]any
	plugins := []m{
		{
			"type": "bridge", "bridge": b.Name, "isGateway": true, "ipMasq": true, "hairpinMode": true,
			"ipam": m{
				"type": "host-local", "dataDir": ipamDir,
				"ranges": [][]m{{{"subnet": b.Subnet}}},
				"routes": []m{{"dst": "0.0.0.0/0"}},
			},
		},
		{"type": "portmap", "capabilities": m{"portMappings": true}},
	}
	if b.Then != "" {
		plugins = append(plugins, m{"type": b.Then})
	}
	doc := m{"cniVersion": "1.0.0", "name": "berth-test", "plugins": plugins}
	out, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "10-berth-test.conflist"), out, 0o644)
}
