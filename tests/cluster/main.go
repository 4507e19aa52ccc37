// A Kubernetes cluster of one node in one program: the upstream components, compiled in, each under its own
// name (argv[0]), and `cluster`, which starts them all. tests/cluster/run.sh uses it, in namespaces of its own.
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	manager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	name := filepath.Base(os.Args[0])
	var component *cobra.Command
	switch name {
	case "cluster":
		if err := serve(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, "cluster:", err)
			os.Exit(1)
		}
		return
	case "kube-apiserver":
		component = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		component = manager.NewControllerManagerCommand()
	case "kube-scheduler":
		component = scheduler.NewSchedulerCommand()
	case "kube-proxy":
		component = proxy.NewProxyCommand()
	case "kubelet":
		component = kubelet.NewKubeletCommand()
	case "kubectl":
		component = kubectl.NewDefaultKubectlCommand()
	default:
		fmt.Fprintf(os.Stderr, "%s: no such component\n", name)
		os.Exit(64)
	}
	os.Exit(cli.Run(component))
}
