package imageservice

import (
	"context"
	"fmt"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ImageFsInfo reports what images take (layers as counted when they were
// unpacked, blobs as counted when they were written) and, apart, what
// containers have written.
func (s *Service) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	bytes, inodes := s.blobs.Usage()
	for _, l := range s.db.Layers() {
		bytes += l.UsageBytes
		inodes += l.UsageInodes
	}
	written, files, err := s.disk.measure(ctx, s.upper.Usage)
	if err != nil {
		return nil, fmt.Errorf("image file system info: %w", err)
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{s.usage(bytes, inodes)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{s.usage(written, files)},
	}, nil
}

// usage names the same mount point for both file systems: they are one, and
// the kubelet takes different names for a split disk.
func (s *Service) usage(bytes, inodes uint64) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  time.Now().UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: s.cfg.StateDir},
		UsedBytes:  &runtimeapi.UInt64Value{Value: bytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
	}
}

// diskUse keeps the last walk over the writable layers. Walking may use a
// twentieth of the time: a small node always gets fresh figures, a large one
// is not kept busy by a kubelet that asks often.
type diskUse struct {
	mu            sync.Mutex
	at            time.Time
	cost          time.Duration
	bytes, inodes uint64
}

func (d *diskUse) measure(ctx context.Context, walk func(context.Context) (uint64, uint64, error)) (uint64, uint64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	start := time.Now()
	if !d.at.IsZero() && d.cost > 5*time.Millisecond && start.Sub(d.at) < 20*d.cost {
		return d.bytes, d.inodes, nil
	}
	bytes, inodes, err := walk(ctx)
	if err != nil {
		return 0, 0, err
	}
	d.bytes, d.inodes, d.at, d.cost = bytes, inodes, time.Now(), time.Since(start)
	return bytes, inodes, nil
}
