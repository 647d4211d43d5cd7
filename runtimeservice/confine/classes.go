package confine

import (
	"fmt"
	"log/slog"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/intel/goresctrl/pkg/blockio"
	"github.com/intel/goresctrl/pkg/rdt"

	"github.com/berth-dev/berth/sandbox/spec"
)

// classes are those of block I/O and of caches and memory bandwidth (RDT). The
// library keeps its state in package variables, so there is one set for a program.
type classes struct {
	mu           sync.Mutex
	blockIO, rdt bool  // a configuration file is given
	blockIOErr   error // why the file does not serve
	rdtErr       error
}

// loadClasses reads the files; "" is none. For RDT it makes the groups in resctrl.
func loadClasses(blockIOFile, rdtFile string, log *slog.Logger) *classes {
	c := &classes{blockIO: blockIOFile != "", rdt: rdtFile != ""}
	if c.blockIO {
		blockio.SetLogger(log)
		if c.blockIOErr = blockio.SetConfigFromFile(blockIOFile, true); c.blockIOErr != nil {
			log.Error("classes of block I/O cannot be used", "file", blockIOFile, "error", c.blockIOErr)
		}
	}
	if c.rdt {
		rdt.SetLogger(log)
		if c.rdtErr = rdt.Initialize(""); c.rdtErr == nil {
			c.rdtErr = rdt.SetConfigFromFile(rdtFile, true)
		}
		if c.rdtErr != nil {
			log.Error("RDT classes cannot be used", "file", rdtFile, "error", c.rdtErr)
		}
	}
	return c
}

// Classes returns what the annotations of a container and its pod ask for. A
// class that the node does not have is refused, and never left out silently.
func (n *Node) Classes(container string, annotations, podAnnotations map[string]string) (spec.Classes, error) {
	var out spec.Classes
	if n.classes == nil {
		n.classes = &classes{}
	}
	n.classes.mu.Lock()
	defer n.classes.mu.Unlock()
	name, err := blockio.ContainerClassFromAnnotations(container, annotations, podAnnotations)
	if err != nil {
		return out, fmt.Errorf("class of block I/O: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if name != "" {
		if err := usable("block I/O", name, "container.blockio_classes", n.classes.blockIO, n.classes.blockIOErr); err != nil {
			return out, err
		}
		if out.BlockIO, err = blockio.OciLinuxBlockIO(name); err != nil {
			return out, fmt.Errorf("class %q of block I/O is not in the file of container.blockio_classes: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	asked := rdtAsked(container, annotations, podAnnotations)
	if asked == "" {
		return out, nil
	}
	if err := usable("RDT", asked, "container.rdt_classes", n.classes.rdt, n.classes.rdtErr); err != nil {
		return out, err
	}
	if out.ClosID, err = rdt.ContainerClassFromAnnotations(container, annotations, podAnnotations); err != nil {
		return out, fmt.Errorf("RDT class %q: %w: %w", asked, err, errdefs.ErrInvalidArgument)
	}
	return out, nil
}

// rdtAsked is the class that is asked for, whether or not the node has any:
// the library answers that only where RDT works.
func rdtAsked(container string, annotations, podAnnotations map[string]string) string {
	if v, ok := annotations[rdt.RdtContainerAnnotation]; ok {
		return v
	}
	if v, ok := podAnnotations[rdt.RdtPodAnnotationContainerPrefix+container]; ok {
		return v
	}
	return podAnnotations[rdt.RdtPodAnnotation]
}

func usable(kind, name, key string, given bool, err error) error {
	if !given {
		return fmt.Errorf("%s class %q: this node has no classes; name a file in %s: %w", kind, name, key, errdefs.ErrFailedPrecondition)
	}
	if err != nil {
		return fmt.Errorf("%s class %q: %w: %w", kind, name, err, errdefs.ErrFailedPrecondition)
	}
	return nil
}
