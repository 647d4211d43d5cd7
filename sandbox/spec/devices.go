package spec

import (
	"io/fs"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// addDevices sets the nodes and the device cgroup: everything is denied but
// what is listed and the few nodes (null, zero, tty...) which the OCI runtime
// makes and allows by itself.
func addDevices(in Input, s *specs.Spec) error {
	if err := checkDevices(in); err != nil {
		return err
	}
	s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	privileged := securityContext(in).GetPrivileged()
	hostNodes := privileged && !in.Handler.PrivilegedWithoutHostDevices
	if hostNodes {
		for _, d := range in.Host.AllDevices {
			if d.ContainerPath == "" {
				d.ContainerPath = d.HostPath
			}
			s.Linux.Devices = addNode(s.Linux.Devices, node(d))
		}
	}
	for _, d := range in.Devices {
		access, err := deviceAccess(d)
		if err != nil {
			return err
		}
		s.Linux.Devices = addNode(s.Linux.Devices, node(owned(in, d)))
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{
			Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access,
		})
	}
	if hostNodes || privileged && in.Handler.PrivilegedAllDevicesAllowed {
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	return nil
}

// checkDevices refuses a CRI device that no node stands for: nothing of that
// name on the host, or a directory without devices.
func checkDevices(in Input) error {
	for _, c := range in.Container.GetDevices() {
		dst := path.Join("/", c.GetContainerPath())
		found := false
		for _, d := range in.Devices {
			p := path.Join("/", d.ContainerPath)
			found = found || p == dst || strings.HasPrefix(p, strings.TrimSuffix(dst, "/")+"/")
		}
		if !found {
			return invalid("devices", "%s is not a device node or a directory of them", c.GetHostPath())
		}
	}
	return nil
}

func deviceAccess(d HostDevice) (string, error) {
	if d.Permissions == "" {
		return "rwm", nil
	}
	if strings.Trim(d.Permissions, "rwm") != "" {
		return "", invalid("devices", "permissions %q of %s are not of r, w, m", d.Permissions, d.HostPath)
	}
	return d.Permissions, nil
}

// owned gives the device the container's user where the handler says so.
func owned(in Input, d HostDevice) HostDevice {
	if !in.Handler.DeviceOwnership {
		return d
	}
	if v := securityContext(in).GetRunAsUser(); v.GetValue() > 0 {
		d.UID = in.User.UID
	}
	if v := securityContext(in).GetRunAsGroup(); v.GetValue() > 0 {
		d.GID = in.User.GID
	}
	return d
}

func node(d HostDevice) specs.LinuxDevice {
	mode := fs.FileMode(d.Mode & 0o777)
	return specs.LinuxDevice{
		Path: path.Join("/", d.ContainerPath), Type: d.Type, Major: d.Major, Minor: d.Minor,
		FileMode: &mode, UID: &d.UID, GID: &d.GID,
	}
}

// addNode lets a later node of the same path win.
func addNode(list []specs.LinuxDevice, d specs.LinuxDevice) []specs.LinuxDevice {
	for i := range list {
		if list[i].Path == d.Path {
			list[i] = d
			return list
		}
	}
	return append(list, d)
}
