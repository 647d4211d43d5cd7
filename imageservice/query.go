package imageservice

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-dev/berth/store"
)

// Resolve returns the image for an ID, tag or digest; NotFound when the node
// does not have it or lacks one of its layers.
func (s *Service) Resolve(_ context.Context, spec *runtimeapi.ImageSpec) (store.Image, error) {
	img, err := s.find(spec.GetImage())
	if err == nil && !s.complete(img) {
		err = fmt.Errorf("find image %q: a layer is missing, pull it again: %w", spec.GetImage(), errdefs.ErrNotFound)
	}
	return img, err
}

// find looks an image up by ID, short ID, tag or digest.
func (s *Service) find(name string) (store.Image, error) {
	if name == "" {
		return store.Image{}, fmt.Errorf("find image: no name given: %w", errdefs.ErrInvalidArgument)
	}
	if looksLikeID.MatchString(name) {
		img, err := s.db.Image(name)
		if err == nil || wholeID.MatchString(name) {
			return img, err
		}
	}
	ref, err := ParseRef(name)
	if err != nil {
		return store.Image{}, fmt.Errorf("find image: %w", err)
	}
	if img, ok := s.db.ImageByRef(ref.String()); ok {
		return img, nil
	}
	return store.Image{}, fmt.Errorf("find image %s: %w", ref, errdefs.ErrNotFound)
}

// complete reports whether all layers of the image are here.
func (s *Service) complete(img store.Image) bool {
	for _, l := range img.Layers {
		if _, err := s.db.Layer(l); err != nil {
			return false
		}
	}
	return true
}

// ListImages lists the images on the node, or the one the filter names.
func (s *Service) ListImages(_ context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.list(req.GetFilter())
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	return &runtimeapi.ListImagesResponse{Images: images}, nil
}

// streamChunk is how many images one message of StreamImages carries.
const streamChunk = 64

// StreamImages lists like ListImages, in messages of bounded size.
func (s *Service) StreamImages(req *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.list(req.GetFilter())
	if err != nil {
		return fmt.Errorf("stream images: %w", err)
	}
	for len(images) > 0 {
		n := min(streamChunk, len(images))
		if err := stream.Send(&runtimeapi.StreamImagesResponse{Images: images[:n]}); err != nil {
			return fmt.Errorf("stream images: %w", err)
		}
		images = images[n:]
	}
	return nil
}

func (s *Service) list(filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if name := filter.GetImage().GetImage(); name != "" {
		img, err := s.find(name)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{describe(img)}, nil
	}
	var all []*runtimeapi.Image
	for _, img := range s.db.Images() {
		if s.complete(img) {
			all = append(all, describe(img))
		}
	}
	return all, nil
}

// ImageStatus describes one image; an image the node lacks is an empty
// response, not an error.
func (s *Service) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.Resolve(ctx, req.GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image status: %w", err)
	}
	resp := &runtimeapi.ImageStatusResponse{Image: describe(img)}
	// Image stays the ID: whatever name was asked for, the answer is the same.
	resp.Image.Spec = &runtimeapi.ImageSpec{
		Image:              img.ID,
		Annotations:        req.GetImage().GetAnnotations(),
		UserSpecifiedImage: req.GetImage().GetUserSpecifiedImage(),
		RuntimeHandler:     req.GetImage().GetRuntimeHandler(),
	}
	if req.GetVerbose() {
		if resp.Info, err = s.info(img); err != nil {
			return nil, fmt.Errorf("image status of %s: %w", img.ID, err)
		}
	}
	return resp, nil
}

// info is the verbose part, under the key peers use.
func (s *Service) info(img store.Image) (map[string]string, error) {
	layers := make([]store.Layer, 0, len(img.Layers))
	for _, id := range img.Layers {
		l, err := s.db.Layer(id)
		if err != nil {
			return nil, err
		}
		layers = append(layers, l)
	}
	raw, err := json.Marshal(map[string]any{
		"chainID":   topLayer(img),
		"imageSpec": json.RawMessage(img.Config),
		"manifest":  img.Manifest,
		"layers":    layers,
		"pulledAt":  img.PulledAt,
	})
	return map[string]string{"info": string(raw)}, err
}

func topLayer(img store.Image) string {
	if len(img.Layers) == 0 {
		return ""
	}
	return img.Layers[len(img.Layers)-1]
}

// describe is the CRI's view of an image.
func describe(img store.Image) *runtimeapi.Image {
	out := &runtimeapi.Image{
		Id: img.ID, RepoTags: img.RepoTags, RepoDigests: img.RepoDigests, Size: img.SizeBytes, Pinned: img.Pinned,
		Spec: &runtimeapi.ImageSpec{Image: img.ID},
	}
	var cfg ocispec.Image
	if json.Unmarshal(img.Config, &cfg) == nil {
		out.Uid, out.Username = imageUser(cfg.Config.User)
	}
	return out
}

// imageUser splits an image's USER: a number is a uid, anything else a name;
// the group does not matter here.
func imageUser(user string) (*runtimeapi.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return nil, ""
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &runtimeapi.Int64Value{Value: uid}, ""
	}
	return nil, user
}
