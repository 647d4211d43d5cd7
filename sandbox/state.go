package sandbox

import (
	"encoding/json"
	"fmt"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// state is what the verbs work on. Its steps only rely on what is known before
// the first one runs, since that is what the journal holds; what they learn
// (addresses, the holder's PID) goes into the record that is committed.
type state struct {
	Rec store.Sandbox
}

// journaled is the state's form in the journal: the CRI message keeps its own encoding.
type journaled struct {
	ID, Handler string
	Config      []byte
	Facts       store.SandboxFacts
}

// MarshalJSON implements json.Marshaler.
func (s *state) MarshalJSON() ([]byte, error) {
	b, err := proto.Marshal(s.Rec.Config)
	if err != nil {
		return nil, fmt.Errorf("encode sandbox config: %w", err)
	}
	return json.Marshal(journaled{s.Rec.ID, s.Rec.Handler, b, s.Rec.Facts})
}

// UnmarshalJSON implements json.Unmarshaler.
func (s *state) UnmarshalJSON(b []byte) error {
	var j journaled
	if err := json.Unmarshal(b, &j); err != nil {
		return fmt.Errorf("decode sandbox state: %w", err)
	}
	cfg := &runtimeapi.PodSandboxConfig{}
	if err := proto.Unmarshal(j.Config, cfg); err != nil {
		return fmt.Errorf("decode sandbox config: %w", err)
	}
	s.Rec = store.Sandbox{ID: j.ID, Handler: j.Handler, Config: cfg, Facts: j.Facts}
	return nil
}

func newState() *state { return &state{} }
