package main

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	// The address of the node on the bridge of its pods.
	nodeAddress = "10.90.0.1"
	podNetwork  = "10.90.0.0/24"
	bridge      = "pods0"
	services    = "10.96.0.0/24"
	etcdAddress = "http://127.0.0.1:2379"
	apiPort     = "6443"
	token       = "administrator"
)

// Starts every component in the directory that `arguments` names, and ends on SIGTERM, or once a component has ended
// that ran for a minute. The files are in the directory: `kubeconfig`, the components' logs, and what they store.
func serve(arguments []string) error {
	if len(arguments) != 1 {
		return errors.New("usage: cluster DIRECTORY")
	}
	place, err := newPlace(arguments[0])
	if err != nil {
		return err
	}
	etcd, err := startEtcd(place.of("etcd"))
	if err != nil {
		return fmt.Errorf("etcd: %w", err)
	}
	defer etcd.Close()
	ended := make(chan error)
	for _, component := range place.components() {
		if err := place.start(component, ended); err != nil {
			return err
		}
	}
	go func() { ended <- answerNames(place.of("kubeconfig")) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	select {
	case err := <-ended:
		return err
	case <-stop:
		return nil
	}
}

// A directory with all files of the cluster.
type place string

func (p place) of(name string) string { return filepath.Join(string(p), name) }

// A component: its name, which is that of its log, and its command line.
type component struct {
	name    string
	command []string
}

func newPlace(directory string) (place, error) {
	p := place(directory)
	for _, name := range []string{"cni", "kubelet", "plugins", "pods"} {
		if err := os.MkdirAll(p.of(name), 0o755); err != nil {
			return p, err
		}
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return p, err
	}
	block := pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}
	files := map[string]string{
		"accounts.pem":     string(pem.EncodeToMemory(&block)),
		"tokens.csv":       token + `,admin,admin,"system:masters"` + "\n",
		"kubeconfig":       kubeconfig,
		"containerd.toml":  p.containerd(),
		"cni/10-pods.json": cni,
		"kubelet.yaml":     p.kubelet(),
		"proxy.yaml":       p.proxy(),
	}
	for name, text := range files {
		if err := os.WriteFile(p.of(name), []byte(text), 0o600); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (p place) components() []component {
	self := "/proc/self/exe"
	kubeconfig := "--kubeconfig=" + p.of("kubeconfig")
	return []component{
		{"containerd", []string{"containerd", "--config", p.of("containerd.toml")}},
		{"kube-apiserver", []string{self,
			"--etcd-servers=" + etcdAddress,
			"--bind-address=127.0.0.1", "--secure-port=" + apiPort, "--cert-dir=" + p.of("apiserver"),
			"--advertise-address=" + nodeAddress, "--endpoint-reconciler-type=none",
			"--service-cluster-ip-range=" + services,
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + p.of("accounts.pem"),
			"--service-account-signing-key-file=" + p.of("accounts.pem"),
			"--token-auth-file=" + p.of("tokens.csv"), "--authorization-mode=RBAC",
			"--kubelet-preferred-address-types=InternalIP",
		}},
		{"kube-controller-manager", []string{self, kubeconfig, "--leader-elect=false", "--secure-port=0",
			"--service-account-private-key-file=" + p.of("accounts.pem"),
		}},
		{"kube-scheduler", []string{self, kubeconfig, "--leader-elect=false", "--secure-port=0"}},
		{"kubelet", []string{self, kubeconfig, "--config=" + p.of("kubelet.yaml"), "--root-dir=" + p.of("kubelet"),
			"--hostname-override=node", "--node-ip=" + nodeAddress, "--cert-dir=" + p.of("kubelet/pki"),
		}},
		{"kube-proxy", []string{self, "--config=" + p.of("proxy.yaml")}},
	}
}

// Starts a component, which ends with this process. Components wait for each other by trying again, except that those
// that need the API at once are started again until it answers.
func (p place) start(c component, ended chan<- error) error {
	log, err := os.Create(p.of(c.name + ".log"))
	if err != nil {
		return err
	}
	first := make(chan error, 1)
	go func() {
		for {
			began := time.Now()
			command := exec.Command(c.command[0], c.command[1:]...)
			if c.command[0] == "/proc/self/exe" {
				command.Args[0] = c.name
			}
			command.Stdout, command.Stderr = log, log
			command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			err := command.Start()
			select {
			case first <- err:
			default:
			}
			if err == nil {
				err = command.Wait()
			}
			if time.Since(began) > time.Minute {
				ended <- fmt.Errorf("%s: %w", c.name, err)
				return
			}
			time.Sleep(time.Second)
		}
	}()
	return <-first
}

func startEtcd(directory string) (*embed.Etcd, error) {
	config := embed.NewConfig()
	config.Dir = directory
	config.LogLevel = "error"
	config.LogOutputs = []string{directory + ".log"}
	config.UnsafeNoFsync = true
	client, peer := parsed(etcdAddress), parsed("http://127.0.0.1:2380")
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.InitialCluster = config.Name + "=" + peer.String()
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		return nil, err
	}
	<-etcd.Server.ReadyNotify()
	return etcd, nil
}

func parsed(address string) url.URL {
	parsed, err := url.Parse(address)
	if err != nil {
		panic(err)
	}
	return *parsed
}

// Its server has a certificate that it made itself.
const kubeconfig = `apiVersion: v1
kind: Config
current-context: lab
clusters: [{name: lab, cluster: {server: "https://127.0.0.1:` + apiPort + `", insecure-skip-tls-verify: true}}]
contexts: [{name: lab, context: {cluster: lab, user: admin, namespace: lab}}]
users: [{name: admin, user: {token: ` + token + `}}]
`

const cni = `{"cniVersion": "0.4.0", "name": "pods", "type": "bridge", "bridge": "` + bridge + `", "isGateway": true,
 "ipam": {"type": "host-local", "subnet": "` + podNetwork + `", "rangeStart": "10.90.0.10", "routes": [{"dst": "0.0.0.0/0"}]}}
`

func (p place) containerd() string {
	return fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
address = %q
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "docker.io/library/pause:local"
# Root in a container of CI may lack the capability to lower it.
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = %q
`, p.of("containerd"), p.of("containerd-state"), p.of("containerd.sock"), p.of("cni"))
}

// Nothing is evicted for a full disk or collected: the images are brought once, and the disk is the machine's.
func (p place) kubelet() string {
	return fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupsPerQOS: true
enforceNodeAllocatable: []
clusterDNS: [%s]
clusterDomain: cluster.local
evictionHard: {nodefs.available: "0%%", imagefs.available: "0%%", memory.available: 1Mi}
failSwapOn: false
imageGCHighThresholdPercent: 100
makeIPTablesUtilChains: false
podLogsDir: %s
protectKernelDefaults: true
syncFrequency: 5s
volumePluginDir: %s
`, p.of("containerd.sock"), nodeAddress, p.of("pods"), p.of("plugins"))
}

// Connection tracking keeps the machine's limits.
func (p place) proxy() string {
	return fmt.Sprintf(`apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: node
clusterCIDR: %s
bindAddress: %s
clientConnection: {kubeconfig: %s}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`, podNetwork, nodeAddress, p.of("kubeconfig"))
}
