"""BibTeX of the papers behind the methods."""

FEYNMAN_KAC_CORRECTORS = """\
@inproceedings{skreta2025feynman,
  title     = {{Feynman-Kac} Correctors in Diffusion: Annealing, Guidance, and
               Product of Experts},
  author    = {Skreta, Marta and Akhound-Sadegh, Tara and Ohanesian, Viktor and
               Bondesan, Roberto and Aspuru-Guzik, Al{\\'a}n and Doucet, Arnaud and
               Brekelmans, Rob and Tong, Alexander and Neklyudov, Kirill},
  booktitle = {Proceedings of the 42nd International Conference on Machine Learning},
  series    = {Proceedings of Machine Learning Research},
  volume    = {267},
  pages     = {55906--55949},
  year      = {2025},
  eprint    = {2503.02819},
  archivePrefix = {arXiv}
}"""

SUPERDIFF = """\
@inproceedings{skreta2025superposition,
  title     = {The Superposition of Diffusion Models Using the {It{\\^o}} Density
               Estimator},
  author    = {Skreta, Marta and Atanackovic, Lazar and Bose, Avishek Joey and
               Tong, Alexander and Neklyudov, Kirill},
  booktitle = {The Thirteenth International Conference on Learning Representations},
  year      = {2025},
  eprint    = {2412.17762},
  archivePrefix = {arXiv}
}"""
