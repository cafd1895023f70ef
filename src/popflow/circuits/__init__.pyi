from .ansatz import (
    Ansatz as Ansatz,
)
from .ansatz import (
    all_to_all as all_to_all,
)
from .ansatz import (
    brick as brick,
)
from .ansatz import (
    cx as cx,
)
from .ansatz import (
    cz as cz,
)
from .ansatz import (
    linear as linear,
)
from .ansatz import (
    ring as ring,
)
from .ansatz import (
    rotations as rotations,
)
from .bit_packing import PackedNetwork as PackedNetwork
from .bit_packing import pack as pack
from .classifier import QuantumHypernetworkClassifier as QuantumHypernetworkClassifier
from .cost import (
    Cost as Cost,
)
from .cost import (
    Truth as Truth,
)
from .cost import (
    cross_entropy as cross_entropy,
)
from .cost import (
    idle_bits as idle_bits,
)
from .cost import (
    squared_error as squared_error,
)
from .cost import (
    truth as truth,
)
from .data import Dataset as Dataset
from .data import digits as digits
from .data import gaussians as gaussians
from .data import mnist as mnist
from .export import draw as draw
from .export import onnx_file as onnx_file
from .export import qasm3 as qasm3
from .hardware import (
    Depolarising as Depolarising,
)
from .hardware import (
    Measured as Measured,
)
from .hardware import (
    evaluate_counts as evaluate_counts,
)
from .hardware import (
    noisy_born as noisy_born,
)
from .hardware import (
    parameter_shift as parameter_shift,
)
from .hardware import (
    sampled_energies as sampled_energies,
)
from .hardware import (
    train_shots as train_shots,
)
from .hypernetwork import (
    Rate as Rate,
)
from .hypernetwork import (
    Success as Success,
)
from .hypernetwork import (
    Trained as Trained,
)
from .hypernetwork import (
    energy as energy,
)
from .hypernetwork import (
    entropy as entropy,
)
from .hypernetwork import (
    evaluate as evaluate,
)
from .hypernetwork import (
    free_energy as free_energy,
)
from .hypernetwork import (
    marginals as marginals,
)
from .hypernetwork import (
    success as success,
)
from .hypernetwork import (
    tail_mean as tail_mean,
)
from .hypernetwork import (
    train_adam as train_adam,
)
from .hypernetwork import (
    train_lbfgs as train_lbfgs,
)
from .hypernetwork import (
    wilson as wilson,
)
from .matrix_product import MatrixProduct as MatrixProduct
from .matrix_product import matrix_product as matrix_product
from .matrix_product import train_score as train_score
from .oracle import Oracle as Oracle
from .search import (
    Found as Found,
)
from .search import (
    annealing as annealing,
)
from .search import (
    exhaustive as exhaustive,
)
from .search import (
    genetic as genetic,
)
from .search import (
    local_search as local_search,
)
from .search import (
    random_search as random_search,
)
from .search import (
    reinforce as reinforce,
)
from .search import (
    straight_through as straight_through,
)
from .space import (
    BinaryMLP as BinaryMLP,
)
from .space import (
    BinaryNetwork as BinaryNetwork,
)
from .space import (
    Choice as Choice,
)
from .space import (
    Gate as Gate,
)
from .space import (
    bits_of as bits_of,
)
from .space import (
    codes_of as codes_of,
)
from .statevector import amplitudes as amplitudes
from .statevector import born as born
from .statevector import sample as sample
from .walsh import Quadratic as Quadratic
from .walsh import quadratic as quadratic
from .walsh import walsh as walsh
from .walsh import weights as weights
